"""The drawings of the HTML report, as inline SVG.

Colours are classes (`subject`, `reference`, `control`), so that the page's style sheet decides them for light, dark and
print; each model has a shape of its own besides. Every drawing says in words what it shows, for those who do not see
it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from unerase.v1.verdicts_pb2 import CurvePoint, Estimate, Excess, Interval, LikelihoodResult, Rate

ROLES = ("control", "reference", "subject")
"""In order of drawing: the subject lies on top."""


def share(value: float) -> str:
    """Return a share in per cent, as in "71 %"; "none" where it is not finite."""
    return f"{100 * value:.0f} %".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "none"


def mark(role: str, x: float, y: float, size: float = 4.5) -> Markup:
    """Draw a model's own shape: a filled circle, a diamond, an open square."""
    if role == "subject":
        return Markup('<circle class="mark subject" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(x, y, size)
    if role == "reference":
        points = " ".join(f"{x + dx * size * 1.2:.1f},{y + dy * size * 1.2:.1f}" for dx, dy in _DIAMOND)
        return Markup('<polygon class="mark reference" points="{}"/>').format(points)
    side = 1.7 * size
    return Markup('<rect class="mark control" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        x - side / 2, y - side / 2, side, side
    )


_DIAMOND = ((0, -1), (1, 0), (0, 1), (-1, 0))


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

    def across(number: float) -> float:
        inside = min(max(number, low), high) if math.isfinite(number) else (high if number > 0 else low)
        return margin + (inside - low) / (high - low) * (width - 2 * margin)

    middle = height / 2
    lines = [_line("grid", across(tick), 0, across(tick), height) for tick in ticks]
    if low < 0 < high:
        lines.append(_line("zero", across(0), 0, across(0), height))
    if limit is not None and low < limit < high:
        lines.append(_line("limit", across(limit), 0, across(limit), height))
    lines.append(_line(f"whisker {role}", across(interval.lower), middle, across(interval.upper), middle))
    return _drawing(width, height, label, Markup("").join(lines) + mark(role, across(value), middle), "lane")


def rate_lane(role: str, rate: Rate) -> Markup:
    """Draw a detection rate from 0 to 100 %."""
    value = rate.hits / rate.cases if rate.cases else math.nan
    label = f"{role}: {rate.hits} of {rate.cases}, {share(rate.wilson.lower)} to {share(rate.wilson.upper)}"
    return lane(role, value, rate.wilson, 0, 1, ticks=(0, 0.25, 0.5, 0.75, 1), label=label)


def excess_lane(role: str, excess: Excess, tolerance: float) -> Markup:
    """Draw an excess over the control from -100 to 100 percentage points, with the tolerance."""
    label = f"{role}: excess {share(excess.value)}, {share(excess.bounds.lower)} to {share(excess.bounds.upper)}"
    return lane(role, excess.value, excess.bounds, -1, 1, ticks=(-1, -0.5, 0.5, 1), limit=tolerance, label=label)


@dataclass(frozen=True)
class _Frame:
    """The inside of a chart with two axes."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (min(max(value, low), high) - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.top + self.height - (min(max(value, low), high) - low) / (high - low) * self.height


def curve(title: str, points: Sequence[CurvePoint]) -> Markup:
    """Draw success against budget: the share of cases that the best of the first k draws shows the concept in."""
    last = max(point.budget for point in points)
    frame = _Frame(42, 10, 258, 150, (1, max(last, 2)), (0, 1))
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line("grid", frame.left, frame.y(tick), frame.left + frame.width, frame.y(tick)))
        parts.append(_text(frame.left - 6, frame.y(tick) + 4, share(tick), "end"))
    for tick in _budget_ticks(last):
        parts.append(_text(frame.x(tick), frame.top + frame.height + 16, str(tick), "middle"))
    parts.append(_text(frame.left + frame.width / 2, frame.top + frame.height + 33, "draws a case", "middle"))
    words = []
    for role in ROLES:
        series = [(point.budget, getattr(point, role)) for point in points if point.HasField(role)]  # type: ignore[arg-type]
        series = [(budget, rate) for budget, rate in series if rate.cases]
        if not series:
            continue
        upper = [f"{frame.x(budget):.1f},{frame.y(rate.wilson.upper):.1f}" for budget, rate in series]
        lower = [f"{frame.x(budget):.1f},{frame.y(rate.wilson.lower):.1f}" for budget, rate in reversed(series)]
        parts.append(Markup('<polygon class="band {}" points="{}"/>').format(role, " ".join(upper + lower)))
        path = " ".join(f"{frame.x(budget):.1f},{frame.y(rate.hits / rate.cases):.1f}" for budget, rate in series)
        parts.append(Markup('<polyline class="curve {}" points="{}"/>').format(role, path))
        budget, rate = series[-1]
        parts.append(mark(role, frame.x(budget), frame.y(rate.hits / rate.cases), 4))
        words.append(f"{role} {rate.hits} of {rate.cases} at {budget}")
    return _drawing(312, 200, f"{title}: {'; '.join(words)}", Markup("").join(parts), "chart")


def _budget_ticks(last: int) -> list[int]:
    if last <= 6:
        return list(range(1, last + 1))
    return sorted({1, round(last / 4), round(last / 2), round(3 * last / 4), last})


def plane(result: LikelihoodResult, tolerance: float) -> Markup:
    """Draw the plane of destruction (x) and lost pull (y): the reference at the origin, the others with intervals."""
    placed = [("subject", result.destruction, result.lost_pull)]
    if result.HasField("control_destruction") and result.HasField("control_lost_pull"):
        placed.insert(0, ("control", result.control_destruction, result.control_lost_pull))
    xs = [0.0, tolerance * 1.6, *_finite(figure for _, figure, _ in placed)]
    ys = [0.0, 1.0, *_finite(figure for _, _, figure in placed)]
    frame = _Frame(54, 14, 350, 270, _padded(xs), _padded(ys))
    right, bottom = frame.left + frame.width, frame.top + frame.height
    edge = frame.x(tolerance)
    parts = [
        Markup('<rect class="intact" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            frame.left, frame.top, edge - frame.left, frame.height
        )
    ]
    for tick in _ticks(*frame.x_range):
        parts.append(_line("grid", frame.x(tick), frame.top, frame.x(tick), bottom))
        parts.append(_text(frame.x(tick), bottom + 17, _number(tick), "middle"))
    for tick in _ticks(*frame.y_range):
        parts.append(_line("grid", frame.left, frame.y(tick), right, frame.y(tick)))
        parts.append(_text(frame.left - 7, frame.y(tick) + 4, _number(tick), "end"))
    parts.append(_line("zero", frame.x(0), frame.top, frame.x(0), bottom))
    parts.append(_line("zero", frame.left, frame.y(0), right, frame.y(0)))
    parts.append(_line("limit", edge, frame.top, edge, bottom))
    parts.append(_text(edge + 6, frame.top + 12, f"tolerance {tolerance:g}", "start"))
    parts.append(_text(frame.left + frame.width / 2, bottom + 36, "destruction", "middle", "axis"))
    parts.append(
        Markup(
            '<text class="axis" text-anchor="middle" transform="translate(14 {:.1f}) rotate(-90)">lost pull</text>'
        ).format(frame.top + frame.height / 2)
    )
    parts.append(mark("reference", frame.x(0), frame.y(0), 6))
    words = ["reference at 0, 0"]
    for role, destruction, lost_pull in placed:
        x, y = frame.x(destruction.value), frame.y(lost_pull.value)
        across, along = destruction.interval, lost_pull.interval
        parts.append(_line(f"whisker {role}", frame.x(across.lower), y, frame.x(across.upper), y))
        parts.append(_line(f"whisker {role}", x, frame.y(along.lower), x, frame.y(along.upper)))
        parts.append(mark(role, x, y, 6))
        words.append(f"{role} at {destruction.value:.2f}, {lost_pull.value:.2f}")
    label = f"Plane of destruction and lost pull: {'; '.join(words)}"
    return _drawing(416, 330, label, Markup("").join(parts), "chart plane")


def trace(losses: Sequence[float], steps: int) -> Markup:
    """Draw the losses at evenly spaced steps of `steps` optimisation steps, averaged over short stretches."""
    stretch = max(1, len(losses) // 60)
    means = [
        sum(part) / len(part) for start in range(0, len(losses), stretch) if (part := losses[start : start + stretch])
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    frame = _Frame(2, 4, 196, 40, (0, max(len(means) - 1, 1)), (low, high if high > low else low + 1))
    path = " ".join(f"{frame.x(i):.1f},{frame.y(mean):.1f}" for i, mean in enumerate(means) if math.isfinite(mean))
    label = f"Loss over {steps} steps, from {means[0]:.4g} to {means[-1]:.4g}"
    return _drawing(200, 48, label, Markup('<polyline class="curve subject" points="{}"/>').format(path), "trace")


def _finite(figures: Iterable[Estimate]) -> list[float]:
    numbers = [number for figure in figures for number in (figure.value, figure.interval.lower, figure.interval.upper)]
    return [number for number in numbers if math.isfinite(number)]


def _padded(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _drawing(width: int, height: int, label: str, inside: Markup, kind: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(kind, width, height, width, height, escape(label), inside)
