"""Pictures as artefacts: PNG in the store, uint8 arrays of shape (height, width, 3) in RGB outside it."""

import io

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unerase_backend.runtime.errors import UneraseError

MAX_PIXELS = 4096 * 4096
"""A larger picture is not decoded: a few kilobytes of PNG can unfold to gigabytes."""


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
