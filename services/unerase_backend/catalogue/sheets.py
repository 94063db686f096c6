"""Sheets of pictures: one file that holds a grid of square tiles without gaps, read row by row."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unerase_backend.runtime.picture_files import picture_size, read_picture
from unerase_backend.runtime.pictures import UnreadablePictureError, encode_picture

MAX_PIXELS = 8192 * 8192
"""The most pixels of an operator's sheet, as of 256 pictures of 512 pixels a side."""


def check(sheet: Path) -> tuple[int, int]:
    """Return width and height of a sheet that can be cut without changing a pixel.

    Raises:
        UnreadablePictureError: it cannot; the message names the file.
    """
    with _naming(sheet):
        return picture_size(sheet.read_bytes(), MAX_PIXELS)


def cut(sheet: Path, tile: int) -> tuple[bytes, ...]:
    """Return the PNG of each tile of side `tile` pixels; errors as in `check`."""
    with _naming(sheet):
        return tuple(encode_picture(each) for each in tiles(read_picture(sheet.read_bytes(), MAX_PIXELS), tile))


def tiles(pixels: NDArray[np.uint8], tile: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of a sheet, (height, width, 3), row by row."""
    for top in range(0, pixels.shape[0], tile):
        for left in range(0, pixels.shape[1], tile):
            yield np.ascontiguousarray(pixels[top : top + tile, left : left + tile])


@contextmanager
def _naming(sheet: Path) -> Iterator[None]:
    try:
        yield
    except UnreadablePictureError as error:
        raise UnreadablePictureError(f"{sheet.name}: {error.message}") from None
    except IsADirectoryError:
        description = "is a folder; give one file, a sheet of square tiles"
        raise UnreadablePictureError(f"{sheet.name}: {description}") from None
    except OSError:
        raise UnreadablePictureError(f"{sheet.name}: the file cannot be read") from None
