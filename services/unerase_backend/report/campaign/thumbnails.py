"""A few small pictures of each cell, within a budget of bytes for a whole page.

Which pictures: the subject's, of the evaluations that brought the concept back, those with the highest excess first,
and then of the plain prompt and the others; one of each evaluation before a second of any. The allowance of a cell
follows from the number of cells of the page, so that no cell's pictures depend on another's.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from unerase.v1.audits_pb2 import ReportContent, ReportPicture
from unerase.v1.types_pb2 import ModelRole
from unerase.v1.verdicts_pb2 import EvaluationResult, Outcome, Verdict
from unerase_backend.report.text import visible

PAGE_BYTES = 3 * 2**20
"""Bytes of all pictures of one page, as they stand in it."""

CELL_BYTES = 64 * 2**10
"""The most bytes of one cell's pictures."""

PICTURES = 6
"""The most pictures of one cell."""

_SIZES = ((4_000, 192, 85), (2_000, 128, 80), (1_200, 96, 75), (0, 64, 75), (0, 64, 50), (0, 48, 50), (0, 32, 50))
"""Bytes from which a size is tried, the most pixels a side, and WebP's quality; from the best to the smallest."""

_FEW, _SMALL = 3, 1_500
"""Pictures that share a cell's allowance where all PICTURES would have less than this many bytes each."""


@dataclass(frozen=True)
class Picked:
    """A picture that the page would show."""

    digest: str
    caption: str
    hit: bool


def pick(verdict: Verdict, content: ReportContent) -> list[Picked]:
    """Return a cell's pictures in order of their importance."""
    results = {result.name: result for result in verdict.evaluations}
    mine = [one for one in content.pictures if one.role == ModelRole.MODEL_ROLE_SUBJECT and one.evaluation in results]
    ranked = sorted(results.values(), key=_importance)
    by_evaluation = {
        # Hits first: they are the evidence of a concept that comes back.
        result.name: sorted((one for one in mine if one.evaluation == result.name), key=lambda one: not one.detected)
        for result in ranked
    }
    rounds = max((len(shown) for shown in by_evaluation.values()), default=0)
    order = [shown[at] for at in range(rounds) for shown in by_evaluation.values() if at < len(shown)]
    chosen: dict[str, Picked] = {}
    for one in order:
        chosen.setdefault(one.digest, _picked(one, results[one.evaluation]))
    return list(chosen.values())[:PICTURES]


def encode(picked: list[Picked], cells: int, read: Callable[[str], bytes | None]) -> list[list[object]]:
    """Return the pictures of one of `cells` cells of a page: data URI, caption, and 1 for a hit.

    `read` returns the PNG of a digest, or None if it is no longer kept; its errors propagate. Pictures that do not fit
    are left out.
    """
    left = min(CELL_BYTES, PAGE_BYTES // max(cells, 1))
    share = max(left // PICTURES, min(left // _FEW, _SMALL))
    sizes = [(side, quality) for least, side, quality in _SIZES if least <= share]
    shown: list[list[object]] = []
    for one in picked:
        picture = read(one.digest)
        if picture is None:
            continue
        # Rather one small picture than none: the first may take more than its share.
        limits = [min(share, left)] if shown else [share, left]
        made = ((limit, data_uri(picture, *size)) for limit in limits for size in sizes)
        uri = next((uri for limit, uri in made if len(uri) <= limit), None)
        if uri is not None:
            left -= len(uri)
            shown.append([uri, one.caption, int(one.hit)])
    return shown


def data_uri(picture: bytes, side: int, quality: int) -> str:
    """Return a picture as a data URI of WebP, reduced to `side` pixels a side if it is larger."""
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((side, side))
        reduced = io.BytesIO()
        image.convert("RGB").save(reduced, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(reduced.getvalue()).decode()}"


def _importance(result: EvaluationResult) -> tuple[bool, float]:
    return result.outcome != Outcome.OUTCOME_RECOVERS, -result.excess.value


def _picked(one: ReportPicture, result: EvaluationResult) -> Picked:
    said = "detected" if one.detected else "not detected"
    title = visible(result.title or result.name)
    return Picked(one.digest, f"{title}, case {one.case_index}: {said}", one.detected)
