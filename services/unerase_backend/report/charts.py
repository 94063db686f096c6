"""The report's charts of rates and of curves: over the budget, the steps of an attack, the strength of an erasure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from markupsafe import Markup

from unerase.v1.verdicts_pb2 import ArmResult, CurvePoint, Estimate, Excess, Interval, Rate, TracingPoint
from unerase_backend.report.drawing import (
    ROLES,
    Frame,
    Scale,
    drawing,
    known,
    line,
    mark,
    polygon,
    polyline,
    share,
    short,
    words,
)
from unerase_backend.runtime.counting import counted

WIDTH, NAMED_WIDTH = 312, 336
"""The widths of a chart with axes, and of one with names beside its curves: about the width of a phone."""

APART = 5.0
"""Curves closer than this are drawn this far apart."""

LINE = 12.5
"""Height of a line of words."""

_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def lane(
    role: str,
    value: float,
    interval: Interval,
    low: float,
    high: float,
    *,
    ticks: Sequence[float],
    limit: float | None = None,
    label: str,
) -> Markup:
    """Draw one figure with its interval on a scale from `low` to `high`; `limit` is a dashed line."""
    width, height, margin = 168, 20, 7
    scale = Scale(low, high)

    def across(number: float) -> float:
        inside = number if not math.isnan(number) else low
        return margin + scale.place(inside) * (width - 2 * margin)

    middle = height / 2
    lines = [line("grid", across(tick), 0, across(tick), height) for tick in ticks]
    if low < 0 < high:
        lines.append(line("zero", across(0), 0, across(0), height))
    if limit is not None and low < limit < high:
        lines.append(line("limit", across(limit), 0, across(limit), height))
    lines.append(line(f"whisker {role}", across(interval.lower), middle, across(interval.upper), middle))
    return drawing(width, height, label, [*lines, mark(role, across(value), middle)], "lane")


def rate_lane(role: str, rate: Rate) -> Markup:
    """Draw a detection rate from 0 to 100 %."""
    label = f"{role}: {rate.hits} of {rate.cases}, {share(rate.wilson.lower)} to {share(rate.wilson.upper)}"
    return lane(role, _share_of(rate), rate.wilson, 0, 1, ticks=_QUARTERS, label=label)


def excess_lane(role: str, excess: Excess, tolerance: float) -> Markup:
    """Draw an excess over the control from -100 to 100 percentage points, with the tolerance."""
    label = f"{role}: excess {share(excess.value)}, {share(excess.bounds.lower)} to {share(excess.bounds.upper)}"
    return lane(role, excess.value, excess.bounds, -1, 1, ticks=(-1, -0.5, 0.5, 1), limit=tolerance, label=label)


def bound_lane(role: str, excess: Excess, tolerance: float) -> Markup:
    """Draw the upper bound of an excess over a control that there is not, on the scale of `excess_lane`."""
    width, height, margin = 168, 20, 7
    upper, middle = excess.bounds.upper, height / 2

    def across(number: float) -> float:
        return margin + Scale(-1, 1).place(number) * (width - 2 * margin)

    lines = [line("grid", across(tick), 0, across(tick), height) for tick in (-1, -0.5, 0.5, 1)]
    lines.append(line("zero", across(0), 0, across(0), height))
    lines.append(line("limit", across(tolerance), 0, across(tolerance), height))
    lines.append(line(f"whisker {role}", 0, middle, across(upper), middle))
    lines.append(line(f"whisker {role}", across(upper), middle - 5, across(upper), middle + 5))
    return drawing(width, height, f"{role}: excess at most {share(upper)}", lines, "lane")


def bar(role: str, part: int, whole: int, label: str) -> Markup:
    """Draw the share of a model's pictures that have a label."""
    width, height = 168, 20
    lines = [line("grid", 4 + tick * (width - 8), 0, 4 + tick * (width - 8), height) for tick in _QUARTERS]
    reach = part / whole * (width - 8) if whole else 0.0
    body = Markup('<rect class="bar {}" x="4" y="4" width="{:.1f}" height="12"/>').format(role, reach)
    return drawing(width, height, f"{role}: {label}, {part} of {whole}", [*lines, body], "lane")


@dataclass(frozen=True)
class Point:
    """A figure with its interval, at a position on the horizontal axis."""

    at: float
    value: float
    lower: float
    upper: float

    @property
    def measured(self) -> bool:
        """Whether there is a figure to draw."""
        return math.isfinite(self.value)


@dataclass(frozen=True)
class Axis:
    """An axis: its scale, its ticks, the format of its numbers, and its title."""

    scale: Scale
    ticks: Sequence[float]
    read: Callable[[float], str]
    title: str = ""


def lines(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    across: Axis,
    along: Axis,
    described: str,
    limit: float | None = None,
) -> Markup:
    """Draw one curve with its band for each role; a curve is interrupted where nothing was measured.

    Several curves are named at their ends. Curves that would coincide are drawn side by side.
    """
    named = len(series) > 1
    frame = Frame(46, 10, 222 if named else 244, 150, across.scale, along.scale)
    parts = []
    for tick in along.ticks:
        parts.append(line("grid", frame.left, frame.y(tick), frame.right, frame.y(tick)))
        parts.append(words(frame.left - 6, frame.y(tick) + 4, along.read(tick), "end"))
    for tick in across.ticks:
        parts.append(words(frame.x(tick), frame.bottom + 16, across.read(tick), "middle"))
    parts.append(words(frame.left + frame.width / 2, frame.bottom + 33, across.title, "middle"))
    if limit is not None and along.scale.low < limit < along.scale.high:
        parts.append(line("limit", frame.left, frame.y(limit), frame.right, frame.y(limit)))
    drawn = {
        role: [(point, frame.x(point.at), frame.y(point.value)) for point in points if point.measured]
        for role, points in series
    }
    middle = frame.top + frame.height / 2
    aside = _aside({role: [(x, y) for _, x, y in points] for role, points in drawn.items()}, middle)
    for role, points in series:
        for there, run in groupby(points, key=lambda point: point.measured):
            if there:
                parts += _stretch(frame, role, list(run), aside[role])
        few = drawn[role] if len(drawn[role]) <= 12 else drawn[role][-1:]
        parts += [mark(role, x, y + aside[role], 3.5) for _, x, y in few]
    if named:
        parts += _names({role: points[-1][2] + aside[role] for role, points in drawn.items() if points}, frame)
    return drawing(NAMED_WIDTH if named else WIDTH, 202, title, parts, "chart", described)


def _stretch(frame: Frame, role: str, points: Sequence[Point], aside: float) -> list[Markup]:
    """Draw one uninterrupted curve with its band, moved down by `aside` units."""
    upper = [(frame.x(point.at), frame.y(known(point.upper, point.value))) for point in points]
    lower = [(frame.x(point.at), frame.y(known(point.lower, point.value))) for point in reversed(points)]
    path = [(frame.x(point.at), frame.y(point.value) + aside) for point in points]
    return [polygon(f"band {role}", upper + lower), polyline(f"curve {role}", path)]


def _aside(curves: Mapping[str, Sequence[tuple[float, float]]], middle: float) -> dict[str, float]:
    """Return how far down each curve is moved so that none hides another; the last one drawn does not move.

    A curve moves towards the middle, so that it stays inside the chart.
    """
    moved: dict[str, float] = {}
    for role in reversed(list(curves)):
        taken = [step for other, step in moved.items() if _coincide(curves[role], curves[other])]
        heights = [y for _, y in curves[role]]
        inwards = APART if sum(heights) < middle * len(heights) else -APART
        moved[role] = next(step for step in (0.0, inwards, 2 * inwards) if step not in taken)
    return moved


def _coincide(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> bool:
    """Whether two curves coincide over a stretch; if they only cross, both are visible."""
    there = dict(other)
    close = [x in there and abs(there[x] - y) < APART for x, y in one]
    return any(map(all, pairwise(close))) or (len(one) == 1 and any(close))


def _names(ends: Mapping[str, float], frame: Frame) -> list[Markup]:
    """Write each role beside the end of its curve; names of ends that lie close are stacked."""
    order = sorted(ends, key=lambda role: ends[role])
    heights = [ends[role] for role in order]
    for at in range(1, len(heights)):
        heights[at] = max(heights[at], heights[at - 1] + LINE)
    lowest = frame.bottom
    for at in reversed(range(len(heights))):
        heights[at] = min(heights[at], lowest)
        lowest = heights[at] - LINE
    return [
        words(frame.right + 8, height + 4, role, "start", f"end {role}")
        for role, height in zip(order, heights, strict=True)
    ]


def curve(title: str, points: Sequence[CurvePoint]) -> Markup:
    """Draw success against budget: the share of cases in which the best of the first k draws shows the concept."""
    last = max(point.budget for point in points)
    across = Axis(Scale(1, max(last, 2)), _counts(last), str, "draws a case")
    return _rates(title, [(point.budget, point) for point in points], across)


def over_steps(title: str, points: Sequence[tuple[float, ArmResult]], unit: str) -> Markup:
    """Draw success against the effort of an attack: the share of single draws that show the concept."""
    spent = [at for at, _ in points]
    read = share if unit == "share of the steps" else short
    scale = Scale(0, max(spent))
    return _rates(title, points, Axis(scale, scale.ticks(), read, unit))


def figures(title: str, points: Sequence[tuple[float, float]], unit: str) -> Markup:
    """Draw a figure that an attack reported at several points."""
    numbers = [value for _, value in points if math.isfinite(value)]
    along = Scale(0, 1) if all(0 <= value <= 1 for value in numbers) else Scale.fit(numbers, zero=False)
    spent = [at for at, _ in points]
    across = Scale(0, max(spent))
    series = [Point(at, value, value, value) for at, value in points]
    return lines(
        title,
        [("subject", series)],
        Axis(across, across.ticks(), short, unit),
        Axis(along, along.ticks(), short),
        "; ".join(f"{short(value)} at {short(at)}" for at, value in points),
    )


def tracing(points: Sequence[TracingPoint], tolerances: tuple[float, float]) -> list[tuple[str, Markup]]:
    """Draw each figure over the strength of the erasure; `tolerances` are those of destruction and general damage."""
    if not points:
        return []
    across = Axis(
        Scale(0, max(1.0, *(point.strength for point in points))), _QUARTERS, share, "strength of the erasure"
    )
    similarity = [Point(each.strength, each.similarity, each.similarity, each.similarity) for each in points]
    detected = [
        Point(each.strength, _share_of(each.detected), each.detected.wilson.lower, each.detected.wilson.upper)
        for each in points
    ]
    drawn = [
        _over(
            "Detected under the plain prompt",
            detected,
            across,
            Axis(Scale(0, 1), _QUARTERS, share),
            "; ".join(f"{each.detected.hits} of {each.detected.cases} at {share(each.strength)}" for each in points),
        ),
        _over(
            "Similarity with the concept\N{RIGHT SINGLE QUOTATION MARK}s text",
            similarity,
            across,
            None,
            _read(similarity),
        ),
    ]
    of_pictures = [point for point in points if point.HasField("destruction")]
    for title, chosen, limit in (
        ("Destruction", [(each.strength, each.destruction) for each in of_pictures], tolerances[0]),
        ("General damage", [(each.strength, each.general_damage) for each in of_pictures], tolerances[1]),
        ("Lost pull", [(each.strength, each.lost_pull) for each in points if each.HasField("lost_pull")], 1.0),
    ):
        if chosen:
            series = [_estimated(strength, figure) for strength, figure in chosen]
            drawn.append(_over(title, series, across, None, _read(series), limit))
    return drawn


def trace(role: str, losses: Sequence[float], steps: int) -> Markup:
    """Draw the losses at evenly spaced steps of `steps` optimisation steps, averaged over short stretches."""
    stretch = max(1, len(losses) // 60)
    means = [
        sum(part) / len(part) for start in range(0, len(losses), stretch) if (part := losses[start : start + stretch])
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    scale = Scale(low, high if high > low else low + 1)
    frame = Frame(2, 4, 196, 40, Scale(0, max(len(means) - 1, 1)), scale)
    path = [(frame.x(i), frame.y(mean)) for i, mean in enumerate(means) if math.isfinite(mean)]
    label = f"Loss over {counted(steps, 'step')}, from {means[0]:.4g} to {means[-1]:.4g}"
    return drawing(200, 48, label, [polyline(f"curve {role}", path)], "trace")


def _rates(title: str, points: Sequence[tuple[float, CurvePoint | ArmResult]], across: Axis) -> Markup:
    series, said = [], []
    for role in ROLES:
        rates: list[tuple[float, Rate]] = [
            (at, getattr(point, role))
            for at, point in points
            if point.HasField(role)  # type: ignore[arg-type]
        ]
        rates = [(at, rate) for at, rate in rates if rate.cases]
        if rates:
            series.append(
                (role, [Point(at, _share_of(rate), rate.wilson.lower, rate.wilson.upper) for at, rate in rates])
            )
            at, rate = rates[-1]
            said.append(f"{role} {rate.hits} of {rate.cases} at {across.read(at)}")
    return lines(title, series, across, Axis(Scale(0, 1), _QUARTERS, share), "; ".join(said))


def _over(
    title: str, points: Sequence[Point], across: Axis, along: Axis | None, described: str, limit: float | None = None
) -> tuple[str, Markup]:
    if along is None:
        near = [0.0, limit] if limit is not None else []
        reach = [number for point in points for number in (point.value, point.lower, point.upper)]
        scale = Scale.fit([*near, *reach], zero=limit is not None)
        along = Axis(scale, scale.ticks(), short)
    return title, lines(title, [("subject", points)], across, along, described, limit)


def _estimated(at: float, figure: Estimate) -> Point:
    return Point(at, figure.value, figure.interval.lower, figure.interval.upper)


def _read(points: Sequence[Point]) -> str:
    return "; ".join(f"{point.value:.2f} at {share(point.at)}" for point in points if point.measured)


def _share_of(rate: Rate) -> float:
    return rate.hits / rate.cases if rate.cases else math.nan


def _counts(last: int) -> list[float]:
    if last <= 6:
        return list(range(1, last + 1))
    return sorted({1, round(last / 4), round(last / 2), round(3 * last / 4), last})
