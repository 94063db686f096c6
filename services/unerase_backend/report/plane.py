"""The plane of destruction (x) and lost pull (y), with an audit's models and others for context.

The reference is at the origin. The unit of destruction is its tolerance; the unit of lost pull is 1, all of the
prompt's pull. If a model is far out, the axis is compressed beyond one unit, and its title says so. A model whose
general damage exceeds the tolerance has a ring. A faint second mark stands at the concept's loss, destruction and
general damage together, if the model is damaged or its two marks are on two sides of the tolerance: only a model with
both within the tolerance has its knowledge intact. Labels cover neither marks nor other labels.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unerase.v1.verdicts_pb2 import Estimate, TracingPoint
from unerase_backend.report.drawing import (
    Frame,
    Scale,
    drawing,
    ends,
    known,
    line,
    mark,
    polyline,
    share,
    short,
    words,
)

SIZE = 400, 340
SMALL = 312, 240
"""The size of a plane among other charts."""

LETTER, LINE = 7.4, 13
"""A generous width of a letter, and the height of a line, at the size of the style sheet."""

MAX_LABEL = 26

APART = 9
"""A second mark closer than this to the first would not be seen."""

COVERED, LARGER = 6, 2.4
"""A mark within COVERED of one that is drawn over it is LARGER by this much, so that it shows around that mark."""

_RINGS = (5, 12, 20, 30, 44, 60, 80, 104, 132)
_DIRECTIONS = [(math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)) for turn in range(16)]


@dataclass(frozen=True)
class Stand:
    """A model's place on the plane."""

    name: str
    kind: str
    """"subject", "reference", "control" or "context"."""
    destruction: Estimate
    lost_pull: Estimate
    general_damage: float = 0.0
    damaged: bool = False
    """Its general damage exceeds the tolerance."""

    @property
    def loss(self) -> float:
        """The concept's loss."""
        return self.destruction.value + self.general_damage


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Return whether two rectangles share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other: "Box") -> bool:
        """Return whether the other rectangle holds this one."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


def draw(stands: Sequence[Stand], tolerance: float) -> Markup:
    """Draw the models, the last on top, each with the intervals of its two figures and its name."""
    stands = [
        stand for stand in stands if _finite(stand.destruction, stand.lost_pull) and math.isfinite(stand.general_damage)
    ]
    xs, ys = ends(stand.destruction for stand in stands), ends(stand.lost_pull for stand in stands)
    frame = frame_of(SIZE, [*xs, *(stand.loss for stand in stands)], ys, tolerance)
    parts = ground(frame, tolerance)
    places = [(frame.x(stand.destruction.value), frame.y(stand.lost_pull.value)) for stand in stands]
    lines = [edge_of(frame, tolerance)]
    seconds = [
        (stand, frame.x(stand.loss), y)
        for stand, (x, y) in zip(stands, places, strict=True)
        if (stand.damaged or (stand.loss > tolerance) != (stand.destruction.value > tolerance))
        and abs(frame.x(stand.loss) - x) >= APART
    ]
    for stand, (x, y) in zip(stands, places, strict=True):
        left, right = map(frame.x, reach(stand.destruction))
        bottom, top = map(frame.y, reach(stand.lost_pull))
        parts.append(line(f"whisker {stand.kind}", left, y, right, y))
        parts.append(line(f"whisker {stand.kind}", x, top, x, bottom))
        lines += [Box(left, y - 1, right, y + 1), Box(x - 1, top, x + 1, bottom)]
    for stand, x, y in seconds:
        first = frame.x(stand.destruction.value)
        parts += [line(f"damage {stand.kind}", first, y, x, y), second_mark(stand.kind, x, y)]
        lines.append(Box(min(first, x), y - 1, max(first, x), y + 1))
    for at, (stand, (x, y)) in enumerate(zip(stands, places, strict=True)):
        if stand.damaged:
            parts.append(Markup('<circle class="ring {}" cx="{:.1f}" cy="{:.1f}" r="9.5"/>').format(stand.kind, x, y))
        covered = any(math.dist((x, y), later) < COVERED for later in places[at + 1 :])
        parts.append(mark(stand.kind, x, y, (4 if stand.kind == "context" else 6) * (LARGER if covered else 1)))
    # The audit's own models get their labels placed first.
    order = sorted(range(len(stands)), key=lambda at: stands[at].kind == "context")
    boxes = place_labels(
        [(*places[at], cut(stands[at].name)) for at in order],
        Box(frame.left, frame.top, frame.right, frame.bottom),
        [
            *(_around(*place, 10 if stand.damaged else 7) for place, stand in zip(places, stands, strict=True)),
            *(_around(x, y, 6) for _, x, y in seconds),
        ],
        lines,
    )
    for at, box in zip(order, boxes, strict=True):
        parts += label(cut(stands[at].name), f"name {stands[at].kind}", places[at], box)
    described = "; ".join(
        f"{stand.name} ({stand.kind}) at {stand.destruction.value:.2f}, {stand.lost_pull.value:.2f}"
        + (f", damaged, loss {stand.loss:.2f}" if stand.damaged else "")
        for stand in reversed(stands)
    )
    return drawing(*SIZE, "Plane of destruction and lost pull", parts, "chart plane", f"{described}.")


def second_mark(kind: str, x: float, y: float) -> Markup:
    """Draw the faint mark at the concept's loss of a kind of model."""
    return Markup('<g class="second">{}</g>').format(mark(kind, x, y, 3.5 if kind == "context" else 5))


def path(points: Sequence[TracingPoint], tolerance: float) -> Markup:
    """Draw the path from the reference to the subject over the strength of the erasure."""
    placed = on_path(points)
    xs, ys = [point.destruction.value for point in placed], [point.lost_pull.value for point in placed]
    frame = frame_of(SMALL, xs, ys, tolerance)
    places = [(frame.x(point.destruction.value), frame.y(point.lost_pull.value)) for point in placed]
    parts = [*ground(frame, tolerance), polyline("curve subject", places)]
    parts += [mark("subject", x, y, 3) for x, y in places[1:-1]]
    parts += [mark("reference" if placed[0].strength == 0 else "subject", *places[0]), mark("subject", *places[-1], 6)]
    named = {0, len(places) - 1, *(at for at, point in enumerate(placed) if round(100 * point.strength) % 50 == 0)}
    order = sorted(named)
    boxes = place_labels(
        [(*places[at], share(placed[at].strength)) for at in order],
        Box(frame.left, frame.top, frame.right, frame.bottom),
        [_around(x, y, 5) for x, y in places],
        [edge_of(frame, tolerance)],
    )
    for at, box in zip(order, boxes, strict=True):
        parts += label(share(placed[at].strength), "name subject", places[at], box)
    described = "; ".join(
        f"{share(point.strength)} at {point.destruction.value:.2f}, {point.lost_pull.value:.2f}" for point in placed
    )
    return drawing(*SMALL, "Path on the plane over the strength", parts, "chart", f"{described}.")


def on_path(points: Iterable[TracingPoint]) -> list[TracingPoint]:
    """Return the points with figures for both axes."""
    return [point for point in points if point.HasField("lost_pull") and _finite(point.destruction, point.lost_pull)]


def place_labels(
    anchors: Sequence[tuple[float, float, str]], inside: Box, marks: Sequence[Box], lines: Sequence[Box] = ()
) -> list[Box]:
    """Return a rectangle for each label, near its anchor, that covers neither a mark nor another label.

    Each label in turn takes the nearest free place on rings around its anchor, or else the nearest on a grid over
    `inside`. It covers others only if no place is free. It also avoids lines if a place near its anchor allows it.
    """
    taken = list(marks)
    chosen = []
    for x, y, text in anchors:
        near, far = _candidates(x, y, LETTER * len(text), inside)
        tried = [(near, [*taken, *lines]), (near, taken), (far, taken), (far, [])]
        box = next(box for boxes, busy in tried for box in boxes if not any(map(box.overlaps, busy)))
        chosen.append(box)
        taken.append(box)
    return chosen


def _candidates(x: float, y: float, width: float, inside: Box) -> tuple[list[Box], list[Box]]:
    """Return rectangles within `inside` on rings and on a grid, the preferred first: near, and to the right."""
    rings = [
        (x + across * (ring + width / 2), y + along * (ring + LINE / 2))
        for ring in _RINGS
        for across, along in _DIRECTIONS
    ]
    grid = [
        (inside.left + width / 2 + across * (inside.right - inside.left - width) / 24, inside.top + LINE * (row + 0.5))
        for across in range(25)
        for row in range(int((inside.bottom - inside.top) / LINE))
    ]
    grid.sort(key=lambda centre: math.dist(centre, (x, y)))

    def boxes(centres: list[tuple[float, float]]) -> list[Box]:
        half, height = width / 2, LINE / 2
        each = (Box(across - half, along - height, across + half, along + height) for across, along in centres)
        return [box for box in each if box.within(inside)]

    return boxes(rings), boxes(grid)


def frame_of(size: tuple[int, int], xs: Iterable[float], ys: Iterable[float], tolerance: float) -> Frame:
    """Return the inside of a plane of a size for figures of destruction and lost pull."""
    across = Scale.fit([1.6 * tolerance, *xs], unit=tolerance or None)
    return Frame(46, 10, size[0] - 62, size[1] - 56, across, Scale.fit([1.0, *ys], unit=1.0))


def ground(frame: Frame, tolerance: float) -> list[Markup]:
    """Draw the axes, the band of intact knowledge, and the lines at the tolerance and where all pull is lost."""
    edge, right, bottom = frame.x(tolerance), frame.right, frame.bottom
    parts = [
        Markup('<rect class="intact" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            frame.left, frame.top, edge - frame.left, frame.height
        )
    ]
    for tick in frame.across.ticks():
        parts.append(line("zero" if tick == 0 else "grid", frame.x(tick), frame.top, frame.x(tick), bottom))
        parts.append(words(frame.x(tick), bottom + 16, short(tick), "middle"))
    for tick in frame.along.ticks():
        parts.append(line("zero" if tick == 0 else "grid", frame.left, frame.y(tick), right, frame.y(tick)))
        parts.append(words(frame.left - 6, frame.y(tick) + 4, short(tick), "end"))
    parts.append(line("limit", edge, frame.top, edge, bottom))
    x, y = frame.left + frame.width / 2, frame.top + frame.height / 2
    parts.append(words(x, bottom + 36, f"destruction{_compressed(frame.across)}", "middle", "axis"))
    parts.append(
        Markup('<text class="axis" text-anchor="middle" transform="translate(13 {:.1f}) rotate(-90)">{}</text>').format(
            y, f"lost pull{_compressed(frame.along)}"
        )
    )
    return parts


def edge_of(frame: Frame, tolerance: float) -> Box:
    """Return the rectangle of the dashed line."""
    return Box(frame.x(tolerance) - 1, frame.top, frame.x(tolerance) + 1, frame.bottom)


def _compressed(scale: Scale) -> str:
    return "" if scale.unit is None else f" (compressed beyond {short(scale.unit)})"


def label(text: str, kind: str, anchor: tuple[float, float], box: Box) -> list[Markup]:
    """Write a label, with a thin line to its mark if that is far away."""
    x, y = anchor
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    leader = [line("leader", x, y, near_x, near_y)] if math.dist((x, y), (near_x, near_y)) > 8 else []
    if box.left > x:
        return [*leader, words(box.left, box.bottom - 3, text, "start", kind)]
    if box.right < x:
        return [*leader, words(box.right, box.bottom - 3, text, "end", kind)]
    return [*leader, words((box.left + box.right) / 2, box.bottom - 3, text, "middle", kind)]


def _finite(*figures: Estimate) -> bool:
    return all(math.isfinite(figure.value) for figure in figures)


def reach(figure: Estimate) -> tuple[float, float]:
    """Return the ends of a figure's interval, or its value where they are not known."""
    return known(figure.interval.lower, figure.value), known(figure.interval.upper, figure.value)


def _around(x: float, y: float, reach: float) -> Box:
    return Box(x - reach, y - reach, x + reach, y + reach)


def cut(name: str) -> str:
    """Return a name short enough for a plane."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
