"""The orientation that a camera writes into an image file: how it is to be turned for display."""

import struct

import numpy as np

_TAG = 0x0112


def orientation(encoded: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP file.

    Args:
      encoded: the bytes of the file; anything may follow its head.

    Returns:
      1 for upright, which is also for no or a damaged tag; 2 ... 8 for mirrored or turned.
    """
    try:
        return _of_tiff(_find_exif(encoded))
    except (struct.error, IndexError):  # cut short
        return 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (H, W, 3) upright, by its EXIF orientation, 1 ... 8."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _find_exif(encoded: bytes) -> bytes:
    if encoded[:2] == b"\xff\xd8":
        return _in_jpeg(encoded)
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return _in_chunks(encoded, 8, ">I4s", b"eXIf", stop=b"IDAT", trailer=4, even=False)
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return _in_chunks(encoded, 12, "<4sI", b"EXIF", stop=b"", trailer=0, even=True)
    return b""


def _in_jpeg(encoded: bytes) -> bytes:
    position = 2
    while encoded[position] == 0xFF:
        marker, size = encoded[position + 1], int.from_bytes(encoded[position + 2 : position + 4])
        if marker == 0xE1 and encoded[position + 4 : position + 10] == b"Exif\0\0":
            return encoded[position + 10 : position + 2 + size]
        if marker == 0xDA or size < 2:  # the pixels begin
            break
        position += 2 + size
    return b""


def _in_chunks(
    encoded: bytes,
    position: int,
    head: str,
    wanted: bytes,
    *,
    stop: bytes,
    trailer: int,
    even: bool,
) -> bytes:
    while position + 8 <= len(encoded):
        first, second = struct.unpack_from(head, encoded, position)
        name, size = (first, second) if isinstance(first, bytes) else (second, first)
        content = position + 8
        if name == wanted:
            return encoded[content : content + size].removeprefix(b"Exif\0\0")
        if name == stop:
            break
        position = content + size + trailer + (size % 2 if even else 0)
    return b""


def _of_tiff(data: bytes) -> int:
    """Return the orientation in the first directory of a TIFF structure."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 1
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", data, entry)
        if tag == _TAG and kind == 3:
            return value if 1 <= value <= 8 else 1
    return 1
