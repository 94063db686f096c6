"""The pictures of a campaign's page: which ones, how large, and never more than the budget."""

import base64
import io
import random

import pytest
from PIL import Image

from support.campaign_by_hand import campaign
from unerase_backend.report.campaign import thumbnails
from unerase_backend.report.campaign.thumbnails import CELL_BYTES, PAGE_BYTES, Picked, data_uri, encode, pick


def _photograph(seed: int, side: int = 512) -> bytes:
    """A picture that compresses like a photograph: coarse noise under fine noise."""
    draw = random.Random(seed)
    coarse = Image.frombytes("RGB", (16, 16), draw.randbytes(16 * 16 * 3)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    fine = Image.frombytes("RGB", (side // 4, side // 4), draw.randbytes((side // 4) ** 2 * 3)).resize((side, side))
    file = io.BytesIO()
    Image.blend(coarse, fine, 0.2).save(file, "PNG", compress_level=1)
    return file.getvalue()


PHOTOGRAPHS = {str(seed): _photograph(seed) for seed in range(6)}
PICKED = [Picked(digest, f"case {digest}", False) for digest in PHOTOGRAPHS]


@pytest.mark.parametrize("cells", [1, 20, 100, 500, 1000, 2000])
def test_every_cell_has_a_picture_within_its_allowance(cells: int) -> None:
    shown = encode(PICKED, cells, PHOTOGRAPHS.get)
    assert 1 <= len(shown) <= 6
    assert sum(len(str(uri)) for uri, _, _ in shown) <= min(CELL_BYTES, PAGE_BYTES // cells)


def test_few_cells_have_all_their_pictures_and_larger_ones() -> None:
    few, many = encode(PICKED, 10, PHOTOGRAPHS.get), encode(PICKED, 2000, PHOTOGRAPHS.get)
    assert len(few) == 6
    assert _side(str(few[0][0])) == 2 * _side(str(many[0][0]))


def _side(uri: str) -> int:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return max(image.size)


def test_a_small_picture_is_not_enlarged() -> None:
    assert _side(data_uri(_photograph(1, 32), 128, 80)) == 32


def test_a_picture_that_is_no_longer_kept_is_left_out() -> None:
    shown = encode(PICKED, 10, lambda digest: None if digest == "0" else PHOTOGRAPHS[digest])
    assert [caption for _, caption, _ in shown] == [f"case {digest}" for digest in list(PHOTOGRAPHS)[1:]]


def test_hits_of_what_recovers_come_first_and_each_evaluation_has_its_turn() -> None:
    made = campaign(pictures=4)
    # The second cell avoids: some of its evaluations recover.
    cell = made.cells[1]
    picked = pick(cell.verdict, made.contents[1])
    recovering = [result for result in cell.verdict.evaluations if result.outcome == 2]
    recovering.sort(key=lambda result: -result.excess.value)
    expected = [f"{result.title}, case 0: detected" for result in recovering]
    assert [one.caption for one in picked[: len(expected)]] == expected
    assert len({one.caption.split(",")[0] for one in picked[:4]}) == 4
    assert len({one.digest for one in picked}) == len(picked) <= thumbnails.PICTURES
