"""Pictures as artefacts: PNG in the store, uint8 arrays of shape (height, width, 3) in RGB outside it."""

import io

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unerase_backend.runtime.errors import UneraseError

MAX_PIXELS = 4096 * 4096
"""A larger picture is not decoded: a few kilobytes of PNG can unfold to gigabytes."""


_OPAQUE_MODES = ("1", "L", "P", "RGB")
# Signature, length and name of the first chunk, width and height come before.
_BIT_DEPTH_AT = 8 + 4 + 4 + 4 + 4


class UnreadablePictureError(UneraseError):
    """The bytes are no picture that can be used; the message is fit as the reason of an unscored sample."""

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
        UnreadablePictureError: it is damaged, no PNG, or has more than `MAX_PIXELS` pixels.
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
        raise UnreadablePictureError("the picture is damaged or no PNG") from None


def opaque_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG of opaque pixels, 8 bits a channel, from what stands before its pixels.

    Raises:
        UnreadablePictureError: it is damaged, another format, has more than `MAX_PIXELS` pixels, or pixels that are not
            seen as they would be judged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadablePictureError(f"the picture has {width} x {height} pixels, too many to be read")
            # The header's ninth byte: Pillow narrows 16 bits to 8 without a word.
            if image.mode not in _OPAQUE_MODES or "transparency" in image.info or content[_BIT_DEPTH_AT] > 8:
                raise UnreadablePictureError("the picture must be opaque, with 8 bits a channel")
            return width, height
    except Image.DecompressionBombError:
        raise UnreadablePictureError("the picture has far too many pixels to be read") from None
    except (OSError, SyntaxError, ValueError, EOFError):
        raise UnreadablePictureError("the picture is damaged or no PNG") from None
