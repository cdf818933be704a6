"""How the processes of a run notice that one is silent."""

import socket
import sys

import pytest

from bocb_jax.engine.sockets import KEEPALIVE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others lack some options")
def test_every_option_is_set_and_taken():
    assert len(KEEPALIVE) == 4
    with socket.socket() as one:
        for option, value in KEEPALIVE:
            one.setsockopt(*option, value)
            assert one.getsockopt(*option) == value
