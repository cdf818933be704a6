"""TIFF files of any kind of number, which Pillow reads but does not write."""

import struct


def tiff(width, height, data, *, bits=8, form=1, white_is_zero=False, further=()):
    """Return a gray TIFF of one strip.

    Args:
      width: in pixels.
      height: in pixels.
      data: the pixels.
      bits: of a pixel.
      form: of its number; 1 unsigned, 2 signed, 3 floating.
      white_is_zero: whether 0 is white.
      further: tags as (number, type, count, value).
    """
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1),
        (262, 3, 1, 0 if white_is_zero else 1), (273, 4, 1, None), (277, 3, 1, 1),
        (278, 3, 1, height), (279, 4, 1, len(data)), (339, 3, 1, form), *further,
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, count, value in sorted(tags):
        value = start if value is None else value
        head += struct.pack("<HHI", tag, kind, count)
        head += struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
    return head + bytes(4) + data
