"""Sheets of pictures: one PNG that holds a grid of square tiles without gaps, read row by row."""

from pathlib import Path

import numpy as np
from PIL import Image

from unerase_backend.runtime.pictures import encode_picture


def cut(sheet: Path, tile: int) -> tuple[bytes, ...]:
    """Return the PNG of each tile of side `tile` pixels."""
    with Image.open(sheet, formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    return tuple(
        encode_picture(np.ascontiguousarray(pixels[top : top + tile, left : left + tile]))
        for top in range(0, pixels.shape[0], tile)
        for left in range(0, pixels.shape[1], tile)
    )
