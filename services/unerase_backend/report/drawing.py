"""The elements of the report's drawings: axes, marks, lines and words, as inline SVG.

Colours are classes (`subject`, `reference`, `control`, `context`), which the page's style sheet defines for light, dark
and print. Each kind of model also has its own shape. Every drawing has a title and a description in words for readers
who cannot see it. A drawing is about as wide as a phone, so that its words are not shrunk there.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

from unerase.v1.verdicts_pb2 import Estimate
from unerase_backend.report.text import visible

ROLES = ("control", "reference", "subject")
"""The roles in drawing order, so that the subject is on top."""

FAR = 4
"""An axis that reaches this many units is compressed beyond one unit, so that small and large figures can be read."""


def share(value: float) -> str:
    """Return a share in per cent, as in "71 %"; "none" if it is not finite."""
    return f"{100 * value:z.0f} %".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "none"


def short(value: float) -> str:
    """Return a figure with three digits, as on an axis."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`: linear, or asinh(value / unit), which is linear near 0 and logarithmic far out."""

    low: float
    high: float
    unit: float | None = None

    @classmethod
    def fit(cls, numbers: Iterable[float], *, zero: bool = True, unit: float | None = None) -> "Scale":
        """Return an axis for the numbers with some margin; it is compressed if they reach far beyond `unit`."""
        finite = [number for number in numbers if math.isfinite(number)]
        finite = [0.0, *finite] if zero or not finite else finite
        far = unit is not None and max(map(abs, finite)) > FAR * unit
        scale = cls(min(finite), max(finite), unit if far else None)
        low, high = scale._bent(scale.low), scale._bent(scale.high)
        margin = 0.08 * (high - low) or 1
        return cls(scale._unbent(low - margin), scale._unbent(high + margin), scale.unit)

    def place(self, value: float) -> float:
        """Return the position of a value, from 0 to 1; values outside, and infinities, are at the edge."""
        inside = min(max(value, self.low), self.high)
        low, high = self._bent(self.low), self._bent(self.high)
        return (self._bent(inside) - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return about five round numbers, or 0 and 1, 2, 5, 10... units on a compressed axis."""
        if self.unit is not None:
            reach = max(-self.low, self.high)
            steps = [self.unit]
            for number in count(1):
                if steps[-1] >= reach:
                    break
                steps.append(self.unit * (1, 2, 5)[number % 3] * 10 ** (number // 3))
            every = math.ceil(len(steps) / 7)
            # Only the first below 0: the labels of others would touch.
            return [tick for tick in (-self.unit, 0.0, *steps[::every]) if self.low <= tick <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        return [step * at for at in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def _bent(self, value: float) -> float:
        return value if self.unit is None else math.asinh(value / self.unit)

    def _unbent(self, value: float) -> float:
        return value if self.unit is None else math.sinh(value) * self.unit


@dataclass(frozen=True)
class Frame:
    """The inside of a chart with two axes."""

    left: float
    top: float
    width: float
    height: float
    across: Scale
    along: Scale

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.height

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        return self.left + self.across.place(value) * self.width

    def y(self, value: float) -> float:
        """Return the vertical position of a value, from the top."""
        return self.bottom - self.along.place(value) * self.height


def mark(kind: str, x: float, y: float, size: float = 4.5) -> Markup:
    """Draw the mark of a kind of model: a filled circle, a diamond, an open square, or a small cross for context."""
    if kind == "subject":
        return Markup('<circle class="mark subject" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(x, y, size)
    if kind == "reference":
        points = " ".join(f"{x + dx * size * 1.2:.1f},{y + dy * size * 1.2:.1f}" for dx, dy in _DIAMOND)
        return Markup('<polygon class="mark reference" points="{}"/>').format(points)
    if kind == "context":
        arm = 0.75 * size
        return Markup('<path class="mark context" d="M{:.1f} {:.1f}l{:.1f} {:.1f}m0 {:.1f}l{:.1f} {:.1f}"/>').format(
            x - arm, y - arm, 2 * arm, 2 * arm, -2 * arm, -2 * arm, 2 * arm
        )
    side = 1.7 * size
    return Markup('<rect class="mark control" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        x - side / 2, y - side / 2, side, side
    )


_DIAMOND = ((0, -1), (1, 0), (0, 1), (-1, 0))


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """Draw a straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def polyline(kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    """Draw a line through points."""
    return Markup('<polyline class="{}" points="{}"/>').format(kind, _coordinates(points))


def polygon(kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    """Draw an area."""
    return Markup('<polygon class="{}" points="{}"/>').format(kind, _coordinates(points))


def words(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    """Write text into a drawing; `anchor` is "start", "middle" or "end"."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, visible(text)
    )


def drawing(width: int, height: int, title: str, inside: Iterable[Markup], kind: str, described: str = "") -> Markup:
    """Return the drawing with its title and its description in words."""
    description = Markup("<desc>{}</desc>").format(visible(described)) if described else ""
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img"><title>{}</title>{}{}</svg>'
    ).format(kind, width, height, width, height, visible(title), description, Markup("").join(inside))


def ends(figures: Iterable[Estimate]) -> list[float]:
    """Return the values of figures and the ends of their intervals."""
    return [number for figure in figures for number in (figure.value, figure.interval.lower, figure.interval.upper)]


def known(number: float, instead: float) -> float:
    """Return `number`, an interval's end, or `instead` if it is not finite."""
    return instead if math.isnan(number) else number


def _coordinates(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
