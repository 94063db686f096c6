"""Pictures as people have them: files of PNG, JPEG or WebP, read only if every pixel stays what it is.

Grey, palettes, one bit, and an alpha channel that is opaque throughout become RGB without loss. What a picture shows on
a screen must be what a model is given, so these are refused: 12 and 16 bits a channel, transparent pixels, CMYK,
animations, and colours other than sRGB. A picture that its Exif data turns is turned, as every viewer does.

Formats are told by their content, not by a name. Headers are read first, with bounds on their parts: a few kilobytes
can expand to gigabytes, or take seconds to go through.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unerase_backend.runtime.colour_profiles import is_srgb, png_is_srgb
from unerase_backend.runtime.pictures import MAX_PIXELS, UnreadablePictureError

Part = TypeVar("Part")

MAX_PARTS = 4096
"""The most chunks of a PNG or WebP and segments of a JPEG; a megabyte of empty ones takes most of a second to read."""

MAX_SCANS = 100
"""The most scans of a JPEG, each of which goes over all pixels; a progressive JPEG has some ten."""

FORMATS = "PNG, JPEG or WebP"

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_DAMAGED = f"the picture is damaged or not a {FORMATS} file"
# The signature, the length and name of the first chunk, and width and height precede it.
_BIT_DEPTH_AT = len(_PNG) + 4 + 4 + 4 + 4
_COLOUR_CHUNKS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_CHUNK_READ = 32
_SOLID = ("1", "L", "P", "RGB")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture_size(content: bytes, most_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return width and height of a picture, as it is shown; its pixels are decoded only if they may be transparent.

    Raises:
        UnreadablePictureError: it is damaged, in another format, has more than `most_pixels` pixels, or would not stay
            what it is; the message says which.
    """
    with _opened(content, most_pixels) as image:
        _check_opaque(image)
        turned = _turn(image) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def read_picture(content: bytes, most_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the pixels of a picture, (height, width, 3) in RGB, turned as it is shown.

    Raises:
        UnreadablePictureError: as in `picture_size`.
    """
    with _opened(content, most_pixels) as image:
        _check_opaque(image)
        turn = _TURNS.get(_turn(image))
        rgb = image.convert("RGB")
        return np.asarray(rgb if turn is None else rgb.transpose(turn))


@contextmanager
def _opened(content: bytes, most_pixels: int) -> Iterator[Image.Image]:
    """Open a picture whose header keeps to all rules."""
    if content.startswith(_PNG):
        form, size = "PNG", _check_png(content)
    elif content.startswith(_JPEG):
        form, size = "JPEG", _check_jpeg(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        form, size = "WEBP", _check_webp(content)
    else:
        raise UnreadablePictureError(_DAMAGED)
    _check_size(size, most_pixels)
    try:
        with Image.open(io.BytesIO(content), formats=[form]) as image:
            # A header may name two sizes.
            _check_size(image.size, most_pixels)
            _check_mode(image)
            yield image
    except Image.DecompressionBombError:
        raise UnreadablePictureError("the picture has far too many pixels to be read") from None
    # Pillow's decoders raise any of these on damaged bytes.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError):
        raise UnreadablePictureError(_DAMAGED) from None


def _check_size(size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        raise UnreadablePictureError(f"the picture has {width} x {height} pixels, too many to be read")


def _check_mode(image: Image.Image) -> None:
    if image.mode == "CMYK":
        raise UnreadablePictureError("the picture is in CMYK, whose colours depend on a press; save it in RGB")
    if image.mode not in (*_SOLID, *_WITH_ALPHA):
        raise UnreadablePictureError(f"the picture is of the kind {image.mode}; save it with 8 bits a channel")
    profile = image.info.get("icc_profile")
    if profile and not is_srgb(profile):
        raise _of_other_colours()


def _check_opaque(image: Image.Image) -> None:
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return
    if np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        raise UnreadablePictureError("the picture must be opaque; put it on a background first")


def _turn(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    # Whatever stands there, a viewer shows the picture; only its turn is lost.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError):
        return 1
    return found if isinstance(found, int) else 1


def _check_png(content: bytes) -> tuple[int, int]:
    colours: dict[bytes, bytes] = {}
    for name, chunk in _bounded("chunks", _png_chunks(content)):
        if name == b"acTL":
            raise _animated()
        if name in _COLOUR_CHUNKS:
            colours.setdefault(name, chunk)
    if len(content) <= _BIT_DEPTH_AT:
        raise UnreadablePictureError(_DAMAGED)
    # Read from the header, because Pillow silently reduces 16 bits to 8.
    if content[_BIT_DEPTH_AT] > 8:
        raise UnreadablePictureError("the picture has 16 bits a channel, and 8 are read; save it with 8")
    if not png_is_srgb(colours):
        raise _of_other_colours()
    width, height = struct.unpack_from(">II", content, len(_PNG) + 8)
    return width, height


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and the first bytes of each of a PNG's chunks, up to the first whose head is incomplete."""
    position = len(_PNG)
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4])
        begin = position + 8
        yield content[position + 4 : begin], content[begin : begin + min(length, _CHUNK_READ)]
        # Length, name, content and checksum.
        position += 12 + length


def _check_jpeg(content: bytes) -> tuple[int, int]:
    if content.count(b"\xff\xda") > MAX_SCANS:
        raise UnreadablePictureError(f"the picture has more than {MAX_SCANS} scans, too many to be read")
    size = None
    for marker, begin in _bounded("segments", _jpeg_segments(content)):
        # Frame headers: 0xC4, 0xC8 and 0xCC are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and begin + 5 <= len(content):
            if content[begin] != 8:
                message = f"the picture has {content[begin]} bits a channel, and 8 are read; save it with 8"
                raise UnreadablePictureError(message)
            height, width = struct.unpack_from(">HH", content, begin + 1)
            size = (width, height)
    if size is None:
        raise UnreadablePictureError(_DAMAGED)
    return size


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and place of the content of each segment up to the first scan; bytes between segments end it."""
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xDA:
            return
        yield marker, position + 4
        # A filling byte is counted like a segment, because Pillow takes as long over it.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(content[position + 2 : position + 4])


def _check_webp(content: bytes) -> tuple[int, int]:
    size = None
    for name, begin in _bounded("chunks", _webp_chunks(content)):
        if name == b"VP8X" and begin + 10 <= len(content):
            if content[begin] & 0x02:
                raise _animated()
            size = tuple(1 + int.from_bytes(content[begin + at : begin + at + 3], "little") for at in (4, 7))
        elif name == b"VP8 " and begin + 10 <= len(content):
            size = size or tuple(each & 0x3FFF for each in struct.unpack_from("<HH", content, begin + 6))
        elif name == b"VP8L" and begin + 5 <= len(content):
            bits = int.from_bytes(content[begin + 1 : begin + 5], "little")
            size = size or (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif name in (b"ANIM", b"ANMF"):
            raise _animated()
    if size is None:
        raise UnreadablePictureError(_DAMAGED)
    return size[0], size[1]


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    position = 12
    while position + 8 <= len(content):
        yield content[position : position + 4], position + 8
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + length + length % 2


def _bounded(what: str, parts: Iterator[Part]) -> Iterator[Part]:
    for count, part in enumerate(parts):
        if count == MAX_PARTS:
            raise UnreadablePictureError(f"the picture has more than {MAX_PARTS} {what}, too many to be read")
        yield part


def _of_other_colours() -> UnreadablePictureError:
    return UnreadablePictureError("the picture has a colour profile other than sRGB; convert it to sRGB")


def _animated() -> UnreadablePictureError:
    return UnreadablePictureError("the picture must be one picture, not an animation")
