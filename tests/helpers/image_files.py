"""Small valid image files of every format, and their damage as hypothesis draws it."""

import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image

EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "a picture"


def encode(image, form, **options):
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _forms():
    y, x = np.mgrid[:24, :32]
    color = Image.fromarray(np.stack([8 * x, 10 * y, 4 * (x + y)], -1).astype(np.uint8))
    gray16 = Image.fromarray((2000 * y + x).astype(np.uint16))
    frames = {"save_all": True, "append_images": [color.rotate(90), color.rotate(180)]}
    return {
        "jpeg": encode(color, "JPEG", exif=EXIF),
        "progressive jpeg": encode(color, "JPEG", progressive=True),
        "gray jpeg": encode(color.convert("L"), "JPEG"),
        "cmyk jpeg": encode(color.convert("CMYK"), "JPEG"),
        "png": encode(color, "PNG", exif=EXIF),
        "png, palette": encode(color.quantize(16), "PNG", transparency=3),
        "png, 16 bits": encode(gray16, "PNG"),
        "png, animated": encode(color, "PNG", **frames),
        "tiff": encode(color, "TIFF", exif=EXIF),
        "tiff, lzw": encode(color, "TIFF", compression="tiff_lzw"),
        "tiff, deflate": encode(color, "TIFF", compression="tiff_adobe_deflate"),
        "tiff, jpeg": encode(color, "TIFF", compression="jpeg"),
        "tiff, 16 bits": encode(gray16, "TIFF"),
        "tiff, floats": encode(Image.fromarray(np.float32(y / 24)), "TIFF"),
        "webp": encode(color, "WEBP", exif=EXIF),
        "webp, lossless": encode(color, "WEBP", lossless=True),
        "webp, animated": encode(color, "WEBP", **frames),
        "gif": encode(color, "GIF"),
        "gif, animated": encode(color, "GIF", **frames),
        "bmp": encode(color, "BMP"),
        "bmp, palette": encode(color.quantize(16), "BMP"),
        "ppm": encode(color, "PPM"),
        "pgm, plain": b"P2 4 2 255 " + b"1 2 3 4 5 6 7 8 ",
        "jpeg 2000": encode(color, "JPEG2000"),
        "avif": encode(color, "AVIF") if "AVIF" in Image.SAVE else b"",
    }


Image.init()
FORMS = {name: data for name, data in _forms().items() if data}


@st.composite
def damaged_files(draw, forms=tuple(FORMS)):
    """Draw the name of a form, and a file of it with bytes flipped, zeroed, cut out or cut off."""
    form = draw(st.sampled_from(forms))
    data = bytearray(FORMS[form])
    # The head decides most of what happens; damage in the middle of pixels all looks alike.
    places = st.one_of(
        st.integers(0, min(64, len(data)) - 1),
        st.integers(0, len(data) - 1),
    )
    for place in draw(st.lists(places, max_size=6)):
        kind = draw(st.sampled_from(["bit", "byte", "zero", "ones"]))
        if kind == "bit":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[place] = draw(st.integers(0, 255))
        else:
            data[place : place + 4] = (b"\0" if kind == "zero" else b"\xff") * 4
    if draw(st.booleans()):
        start = draw(places) % len(data)
        del data[start : start + draw(st.integers(1, 16))]
    if draw(st.booleans()):
        del data[draw(places) % max(1, len(data)) :]
    return form, bytes(data)


def png_of_size(width, height, *, rows=0):
    """Return a gray PNG whose head says how large it is, with that many rows of zeros."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * rows)))
    return b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")


def jpeg_of_size(width, height, scans=1):
    """Return a progressive JPEG whose head says how large it is, its last scan repeated."""
    data = encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2")
    data = data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"
