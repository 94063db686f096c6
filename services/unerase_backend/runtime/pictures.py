"""Pictures as artefacts: PNG in the store, uint8 arrays of shape (height, width, 3) in RGB outside it.

The central square, given as a share of the picture's side, is what inpainting repaints and a view shows or hides.
"""

import io
import math
from collections.abc import Iterator

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unerase_backend.runtime.errors import UneraseError

MAX_PIXELS = 4096 * 4096
"""Larger pictures are not decoded: a few kilobytes of PNG can expand to gigabytes."""

MAX_CHUNKS = 4096
"""The most chunks of a PNG; a megabyte of empty chunks takes most of a second to read."""

GREY = 128
"""The value of hidden pixels: the middle of the range, with which an inpainting pipeline blanks its mask."""

# A share that was computed from whole cells gives the same cells back in spite of floating-point error.
_ROUNDING = 1e-9


_OPAQUE_MODES = ("1", "L", "P", "RGB")
_SIGNATURE = 8
# The signature, the length and name of the first chunk, and width and height precede it.
_BIT_DEPTH_AT = _SIGNATURE + 4 + 4 + 4 + 4


class UnreadablePictureError(UneraseError):
    """The bytes are not a usable picture; the message can be the reason of an unscored sample."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PICTURE_UNREADABLE"


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """Return the PNG of a picture, the same bytes for the same picture within one version of Pillow."""
    png = io.BytesIO()
    Image.fromarray(picture, mode="RGB").save(png, format="PNG")
    return png.getvalue()


def decode_picture(content: bytes) -> NDArray[np.uint8]:
    """Return the picture of a PNG.

    Raises:
        UnreadablePictureError: it is damaged, not a PNG, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadablePictureError(f"the picture has {width} x {height} pixels, too many to be read")
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        raise UnreadablePictureError("the picture has far too many pixels to be read") from None
    # Pillow's decoders raise any of these on damaged bytes.
    except (OSError, SyntaxError, ValueError, EOFError):
        raise UnreadablePictureError("the picture is damaged or not a PNG") from None


def square_margin(side: int, share: float) -> int:
    """Return how many of `side` pixels or cells are on either side of the central square.

    The square's side is `share` of `side`, rounded up to whole pixels: floor((1 - share) / 2 * side) are left.
    """
    return min(math.floor((1 - share) / 2 * side + _ROUNDING), (side - 1) // 2)


def crop_square(picture: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Return the central square, enlarged to the picture's size (bicubic)."""
    height, width = picture.shape[:2]
    square = Image.fromarray(np.ascontiguousarray(picture[_central(height, width, share)]), mode="RGB")
    return np.asarray(square.resize((width, height), Image.Resampling.BICUBIC))


def grey_square(picture: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Return the picture with its central square grey."""
    hidden = picture.copy()
    height, width = picture.shape[:2]
    hidden[_central(height, width, share)] = GREY
    return hidden


def _central(height: int, width: int, share: float) -> tuple[slice, slice]:
    across, down = square_margin(width, share), square_margin(height, share)
    return slice(down, height - down), slice(across, width - across)


def opaque_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG of opaque pixels with 8 bits a channel, without decoding the pixels.

    Raises:
        UnreadablePictureError: it is damaged, not a PNG, an animation, has more than `MAX_PIXELS` pixels or
            `MAX_CHUNKS` chunks, or is not opaque with 8 bits a channel.
    """
    for count, kind in enumerate(_chunks(content)):
        if count == MAX_CHUNKS:
            raise UnreadablePictureError(f"the picture has more than {MAX_CHUNKS} chunks, too many to be read")
        if kind == b"acTL":
            raise UnreadablePictureError("the picture must be one picture, not an animation")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadablePictureError(f"the picture has {width} x {height} pixels, too many to be read")
            # Read from the header's ninth byte, because Pillow silently reduces 16 bits to 8.
            if image.mode not in _OPAQUE_MODES or "transparency" in image.info or content[_BIT_DEPTH_AT] > 8:
                raise UnreadablePictureError("the picture must be opaque, with 8 bits a channel")
            return width, height
    except Image.DecompressionBombError:
        raise UnreadablePictureError("the picture has far too many pixels to be read") from None
    except (OSError, SyntaxError, ValueError, EOFError):
        raise UnreadablePictureError("the picture is damaged or not a PNG") from None


def _chunks(content: bytes) -> Iterator[bytes]:
    """Yield the names of a PNG's chunks, up to the first whose head is incomplete."""
    position = _SIGNATURE
    while position + 8 <= len(content):
        yield content[position + 4 : position + 8]
        # Length, name, content and checksum.
        position += 12 + int.from_bytes(content[position : position + 4])
