"""The sheets of a catalogue file: read and refused as uploads are, by the file's name, before anything is cut."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from unerase_backend.catalogue import EMBEDDED, Catalogue, sheets
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import UnreadablePictureError, decode_picture

SHEET = Image.open(EMBEDDED.parent / "pictures" / "hourglass.png").convert("RGB").crop((0, 0, 128, 128))


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=form, **options)
    return content.getvalue()


def cut_out() -> bytes:
    """The concept's pixels on a transparent background, as picture editors save them."""
    pixels = np.asarray(SHEET)
    shown = (np.abs(pixels.astype(int) - pixels[0, 0]).sum(-1) > 60).astype(np.uint8) * 255
    return saved(Image.fromarray(np.dstack([pixels, shown])))


def load(folder: Path, content: bytes, **fields: object) -> Catalogue:
    (folder / "sheet.png").write_bytes(content)
    concept = {"kind": "object", "names": ["clepsammia"], "pictures": "sheet.png", "tile": 32, **fields}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"concepts": {"mine": concept}}))
    return Catalogue.load([str(folder / "mine.yaml")])


@pytest.mark.parametrize(
    "shown", [SHEET, SHEET.convert("L"), SHEET.convert("P"), SHEET.convert("1"), SHEET.convert("RGBA")]
)
def test_a_sheet_is_cut_into_the_pixels_that_it_shows(tmp_path: Path, shown: Image.Image) -> None:
    load(tmp_path, saved(shown))
    tiles = [decode_picture(tile) for tile in sheets.cut(tmp_path / "sheet.png", 32)]
    rows = [np.concatenate(tiles[row : row + 4], axis=1) for row in range(0, 16, 4)]
    assert np.array_equal(np.concatenate(rows), np.asarray(shown.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_a_sheet_is_what_its_content_is(tmp_path: Path, form: str) -> None:
    """Whatever its name ends in."""
    content = saved(SHEET, form)
    load(tmp_path, content)
    first = decode_picture(sheets.cut(tmp_path / "sheet.png", 32)[0])
    assert np.array_equal(first, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[:32, :32])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (saved(Image.fromarray(np.asarray(SHEET.convert("L")).astype(np.uint16) * 257)), "16 bits a channel"),
        (cut_out(), "must be opaque"),
        (saved(SHEET.convert("CMYK"), "JPEG"), "in CMYK"),
        (saved(SHEET, save_all=True, append_images=[SHEET.rotate(90)]), "not an animation"),
        (saved(SHEET, "TIFF"), "not a PNG, JPEG or WebP file"),
        (b"", "not a PNG, JPEG or WebP file"),
    ],
)
@pytest.mark.parametrize("field", ["pictures", "near_misses"])
def test_a_sheet_that_would_change_is_refused_by_its_name(
    tmp_path: Path, field: str, content: bytes, said: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        load(tmp_path, content, **{"pictures": None, field: "sheet.png"})
    (violation,) = refused.value.violations
    assert violation.field == f"mine.yaml: concepts.mine.{field}"
    assert violation.description.startswith("sheet.png: ")
    assert said in violation.description


def test_a_sheet_without_whole_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        load(tmp_path, saved(SHEET.crop((0, 0, 128, 100))))
    (violation,) = refused.value.violations
    assert violation.description == "a sheet of 128 x 100 pixels has no tiles of 32"


def test_a_folder_in_place_of_a_sheet_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InvalidRequestError) as refused:
        load(tmp_path, saved(SHEET), pictures="photos")
    (violation,) = refused.value.violations
    assert violation.description == "photos: is a folder; give one file, a sheet of square tiles"


def test_a_sheet_that_breaks_later_is_named(tmp_path: Path) -> None:
    content = saved(SHEET)
    load(tmp_path, content)
    for spoiled in (content[: len(content) // 2], b""):
        (tmp_path / "sheet.png").write_bytes(spoiled)
        with pytest.raises(UnreadablePictureError, match=r"sheet\.png: the picture is damaged"):
            sheets.cut(tmp_path / "sheet.png", 32)
    (tmp_path / "sheet.png").unlink()
    with pytest.raises(UnreadablePictureError, match=r"sheet\.png: the file cannot be read"):
        sheets.check(tmp_path / "sheet.png")
