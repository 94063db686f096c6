"""Small multiples of the plane of destruction and lost pull: one for each concept, all with the same axes.

Each subject is a mark whose shape and colour say its conclusion, and which opens its evidence. The reference of every
audit is at the origin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unerase_backend.report import plane
from unerase_backend.report.campaign.rows import Row
from unerase_backend.report.drawing import drawing, ends, line, mark
from unerase_backend.report.text import visible

NAMED = 12
"""Subjects of one plane up to which each is named; more names would cover each other."""

SHAPES = {
    "removed": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "avoided": "M0 -5.6L5.4 4.2L-5.4 4.2z",
    "not-erased": "M-4.3 -4.3h8.6v8.6h-8.6z",
    "": "M-4 -4l8 8m0 -8l-8 8",
}
"""The outline of each kind of conclusion around the origin; the last is that of all others."""


@dataclass(frozen=True)
class Multiple:
    """The plane of one concept."""

    concept: str
    drawn: Markup


def multiples(rows: Sequence[Row], tolerance: float) -> list[Multiple]:
    """Return the planes of the concepts that have a subject with both figures, in the order of the cells."""
    placed = [
        row
        for row in rows
        if row.destruction is not None
        and row.lost_pull is not None
        and math.isfinite(row.destruction.value + row.lost_pull.value)
    ]
    xs = ends(row.destruction for row in placed if row.destruction is not None)
    ys = ends(row.lost_pull for row in placed if row.lost_pull is not None)
    of_concept: dict[str, list[Row]] = {}
    for row in placed:
        of_concept.setdefault(row.concept, []).append(row)
    return [Multiple(concept, _draw(concept, shown, (xs, ys), tolerance)) for concept, shown in of_concept.items()]


def key(kind: str) -> Markup:
    """Draw the mark of a kind of conclusion for a legend."""
    return Markup(
        '<svg class="key" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true"><path class="stand {}" '
        'transform="translate(7 7)" d="{}"/></svg>'
    ).format(kind, SHAPES.get(kind, SHAPES[""]))


def _draw(concept: str, rows: Sequence[Row], figures: tuple[list[float], list[float]], tolerance: float) -> Markup:
    frame = plane.frame_of(plane.SMALL, *figures, tolerance)
    parts = [*plane.ground(frame, tolerance), mark("reference", frame.x(0), frame.y(0), 4)]
    places: list[tuple[float, float]] = []
    lines = [plane.edge_of(frame, tolerance)]
    for row in rows:
        assert row.destruction is not None and row.lost_pull is not None  # noqa: PT018, S101
        x, y = frame.x(row.destruction.value), frame.y(row.lost_pull.value)
        left, right = map(frame.x, plane.reach(row.destruction))
        bottom, top = map(frame.y, plane.reach(row.lost_pull))
        parts += [line("reach", left, y, right, y), line("reach", x, bottom, x, top)]
        lines += [plane.Box(left, y - 1, right, y + 1), plane.Box(x - 1, top, x + 1, bottom)]
        places.append((x, y))
    # The worst is drawn last, on top.
    for row, (x, y) in sorted(zip(rows, places, strict=True), key=lambda each: -each[0].said.severity):
        parts.append(
            Markup(
                '<a href="#cell-{}" tabindex="-1"><path class="stand {}" transform="translate({:.1f} {:.1f})" d="{}">'
                "<title>{}</title></path></a>"
            ).format(
                row.index,
                row.said.kind,
                x,
                y,
                SHAPES.get(row.said.kind, SHAPES[""]),
                visible(f"{row.subject}: {row.said.word}"),
            )
        )
    if len(rows) <= NAMED:
        named = [plane.cut(row.subject.rpartition("/")[2]) for row in rows]
        boxes = plane.place_labels(
            [(x, y, name) for (x, y), name in zip(places, named, strict=True)],
            plane.Box(frame.left, frame.top, frame.right, frame.bottom),
            [plane.Box(x - 6, y - 6, x + 6, y + 6) for x, y in [*places, (frame.x(0), frame.y(0))]],
            lines,
        )
        for name, place, box in zip(named, places, boxes, strict=True):
            parts += plane.label(name, "name", place, box)
    described = "; ".join(
        f"{row.subject}, {row.said.word}, at {row.destruction.value:.2f}, {row.lost_pull.value:.2f}"
        for row in rows
        if row.destruction is not None and row.lost_pull is not None
    )
    return drawing(*plane.SMALL, f"Destruction and lost pull: {concept}", parts, "chart multiple", f"{described}.")
