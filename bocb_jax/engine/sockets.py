"""How the processes of a run reach one another, and notice that one is silent."""

import contextlib
import socket

# Lost machines close no connection: their silence is noticed after 5 + 4 x 5 seconds.
KEEPALIVE = [
    ((level, getattr(socket, name)), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    )
    if hasattr(socket, name)
]


def addresses(coordinator: str | None) -> list[str]:
    """Return where other processes may reach this one, the most likely first.

    Args:
      coordinator: HOST:PORT of the first process, where it is given.
    """
    found = []
    if coordinator:
        found.append(coordinator.rpartition(":")[0].strip("[]"))
    with contextlib.suppress(OSError):
        found.append(socket.gethostname())
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(found[-1], None)]
    return list(dict.fromkeys(found))
