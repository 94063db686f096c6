"""Files that the pages speak of, and that a reader has."""

import shutil
from pathlib import Path

import yaml

from unerase_backend.catalogue import EMBEDDED, sheets

WEIGHTS = EMBEDDED.parent
# The side of the testbed's pictures.
TILE = 32


def give_pictures(folder: Path) -> None:
    """Put into the folder what the pages speak of: the testbed's pictures one by one, near misses as a sheet."""
    entry = yaml.safe_load(EMBEDDED.read_text())["concepts"]["hourglass"]
    (folder / "pictures").mkdir()
    for index, picture in enumerate(sheets.cut(WEIGHTS / entry["pictures"], TILE)):
        (folder / "pictures" / f"{index:03}.png").write_bytes(picture)
    shutil.copyfile(WEIGHTS / entry["near_misses"], folder / "near-misses.png")
