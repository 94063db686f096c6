"""Sheets of pictures: one PNG that holds a grid of square tiles without gaps, read row by row."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unerase_backend.runtime.pictures import encode_picture


def cut(sheet: Path, tile: int) -> tuple[bytes, ...]:
    """Return the PNG of each tile of side `tile` pixels."""
    with Image.open(sheet, formats=["PNG"]) as image:
        return tuple(encode_picture(each) for each in tiles(np.asarray(image.convert("RGB")), tile))


def tiles(pixels: NDArray[np.uint8], tile: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of a sheet, (height, width, 3), row by row."""
    for top in range(0, pixels.shape[0], tile):
        for left in range(0, pixels.shape[1], tile):
            yield np.ascontiguousarray(pixels[top : top + tile, left : left + tile])
