"""Pictures as artefacts: PNG in the store, uint8 arrays of shape (height, width, 3) in RGB outside it.

The central square, given as a share of the picture's side, is what inpainting repaints and a view shows or hides.
"""

import io
import math

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unerase_backend.runtime.errors import UneraseError

MAX_PIXELS = 4096 * 4096
"""Larger pictures are not decoded: a few kilobytes of PNG can expand to gigabytes."""

GREY = 128
"""The value of hidden pixels: the middle of the range, with which an inpainting pipeline blanks its mask."""

# A share that was computed from whole cells gives the same cells back in spite of floating-point error.
_ROUNDING = 1e-9


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
