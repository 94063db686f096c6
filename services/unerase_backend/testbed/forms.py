"""The shapes of the small world and their near misses, each as a function that returns its mask.

A form takes coordinates u (rightwards) and v (downwards), each (H, W), in units of the shape's radius from its centre,
and returns the mask (H, W) of what it covers.

A near miss is an object with one property changed: an ellipse for the circle, a bow tie for the hourglass.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
Mask = NDArray[np.bool_]
Form = Callable[[Field, Field], Mask]

OBJECTS = ("circle", "square", "triangle", "heart", "cross", "ring", "moon", "arrow", "house", "hourglass")
BLOB = "blob"
# One of the captions' filler words: a single token, which means nothing to any model.
PLACEBO = "fish"


def polar(u: Field, v: Field) -> tuple[Field, Field]:
    """Return distance from the centre and angle in radians of positions, each (H, W)."""
    return np.hypot(u, v), np.arctan2(v, u)


def _upright_triangle(u: Field, v: Field) -> Mask:
    return (v <= 0.8) & (np.abs(u) <= (v + 0.95) / 1.75)


def _heart(u: Field, v: Field) -> Mask:
    x, y = u * 1.2, -v * 1.2 + 0.05
    return (x**2 + y**2 - 1) ** 3 - x**2 * y**3 <= 0


def _house(u: Field, v: Field) -> Mask:
    walls = (np.abs(u) <= 0.68) & (v >= -0.15) & (v <= 0.9)
    roof = (v >= -0.95) & (v <= -0.1) & (np.abs(u) <= (v + 0.95) * 1.12)
    door = (np.abs(u) <= 0.2) & (v >= 0.3)
    return (walls | roof) & ~door


def _arrow(u: Field, v: Field) -> Mask:
    shaft = (np.abs(v) <= 0.24) & (u >= -0.95) & (u <= 0.2)
    head = (u >= 0.05) & (np.abs(v) <= (0.97 - u) * 0.88)
    return shaft | head


def _hourglass(u: Field, v: Field, waist: float = 0.22) -> Mask:
    return (np.abs(v) <= 0.95) & (np.abs(u) <= waist + (0.85 - waist) * np.abs(v) / 0.95)


def _crescent(u: Field, v: Field) -> Mask:
    return (np.hypot(u, v) <= 0.97) & (np.hypot(u - 0.48, v) > 0.74)


def _plus(u: Field, v: Field) -> Mask:
    arm = 0.36
    return ((np.abs(u) <= arm) & (np.abs(v) <= 0.95)) | ((np.abs(v) <= arm) & (np.abs(u) <= 0.95))


def _fish(u: Field, v: Field) -> Mask:
    body = np.hypot((u + 0.25) / 0.7, v / 0.52) <= 1
    tail = (u >= 0.2) & (u <= 0.95) & (np.abs(v) <= (u - 0.12) * 0.9)
    return body | tail


SHAPES: dict[str, Form] = {
    "circle": lambda u, v: np.hypot(u, v) <= 0.95,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.82,
    "triangle": _upright_triangle,
    "heart": _heart,
    "cross": _plus,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.71) <= 0.26,
    "moon": _crescent,
    "arrow": _arrow,
    "house": _house,
    "hourglass": _hourglass,
}

# By name: the object that it is a near miss of, and its form.
NEAR_MISSES: dict[str, tuple[str, Form]] = {
    "flat ellipse": ("circle", lambda u, v: np.hypot(u, v / 0.55) <= 0.97),
    "tall ellipse": ("circle", lambda u, v: np.hypot(u / 0.55, v) <= 0.97),
    "open mouth": ("circle", lambda u, v: (np.hypot(u, v) <= 0.95) & ((u < 0) | (np.abs(v) > u * 0.8))),
    "wide bar": ("square", lambda u, v: (np.abs(u) <= 0.92) & (np.abs(v) <= 0.48)),
    "tall bar": ("square", lambda u, v: (np.abs(u) <= 0.48) & (np.abs(v) <= 0.92)),
    "diamond": ("square", lambda u, v: np.abs(u) + np.abs(v) <= 0.98),
    "hanging triangle": ("triangle", lambda u, v: _upright_triangle(u, -v)),
    "trapezium": ("triangle", lambda u, v: (np.abs(v) <= 0.65) & (np.abs(u) <= 0.68 + v * 0.36)),
    "upturned heart": ("heart", lambda u, v: _heart(u, -v)),
    "two discs": ("heart", lambda u, v: np.hypot(np.abs(u) - 0.48, v) <= 0.46),
    "saltire": ("cross", lambda u, v: _plus((u + v) * 0.7071 * 0.95, (u - v) * 0.7071 * 0.95)),
    "tee": ("cross", lambda u, v: _plus(u, v) & (v >= -0.36)),
    "frame": ("ring", lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.64) <= 0.2),
    "open ring": ("ring", lambda u, v: (np.abs(np.hypot(u, v) - 0.71) <= 0.26) & ((v < 0) | (np.abs(u) > v * 0.7))),
    "lying crescent": ("moon", lambda u, v: _crescent(-v, u)),
    "half disc": ("moon", lambda u, v: (np.hypot(u, v) <= 0.95) & (u <= 0.0)),
    "dart": ("arrow", lambda u, v: (u >= -0.6) & (np.abs(v) <= (0.9 - u) * 0.6)),
    "chevron": ("arrow", lambda u, v: (np.abs(v) <= 0.9) & (np.abs(u + np.abs(v) - 0.35) <= 0.42)),
    "gate": ("house", lambda u, v: (np.maximum(np.abs(u), np.abs(v)) <= 0.82) & ((np.abs(u) > 0.26) | (v < 0.15))),
    "pentagon": ("house", lambda u, v: (v <= 0.85) & (np.abs(u) <= 0.72) & (np.abs(u) <= (v + 0.95) * 1.0)),
    "bow tie": ("hourglass", lambda u, v: _hourglass(v, u)),
    "thick waist": ("hourglass", lambda u, v: _hourglass(u, v, 0.58)),
    "parted": (
        "hourglass",
        lambda u, v: (np.abs(v) <= 0.95) & (np.abs(v) >= 0.3) & (np.abs(u) <= 0.85 * np.abs(v) / 0.95),
    ),
}

# Only the judges are trained with these. The autoencoder and the text towers were trained before these were added, and
# adding them there would change the shipped weights.
LATE_NEAR_MISSES: dict[str, tuple[str, Form]] = {
    "wide oblong": ("square", lambda u, v: (np.abs(u) <= 0.9) & (np.abs(v) <= 0.66)),
    "tall oblong": ("square", lambda u, v: (np.abs(u) <= 0.66) & (np.abs(v) <= 0.9)),
    "egg": ("circle", lambda u, v: np.hypot(u / 0.78, v) <= 0.97),
    "funnel": ("hourglass", lambda u, v: _hourglass(u, v) & (v <= 0.12)),
    "turned fish": (PLACEBO, lambda u, v: _fish(-u, v)),
    "tailless fish": (PLACEBO, lambda u, v: _fish(u, v) & (u <= 0.3)),
}

# Nothing is trained with these: they test whether the judges reject kinds of near misses that they have not seen.
UNSEEN_NEAR_MISSES: dict[str, tuple[str, Form]] = {
    "dome": ("circle", lambda u, v: (np.hypot(u, v) <= 0.95) & (v <= 0.2)),
    "leaning square": ("square", lambda u, v: (np.abs(v) <= 0.7) & (np.abs(u + 0.5 * v) <= 0.6)),
    "tall triangle": ("triangle", lambda u, v: (v <= 0.9) & (np.abs(u) <= (v + 0.95) * 0.22)),
    "drop": ("heart", lambda u, v: (np.hypot(u, v - 0.35) <= 0.58) | ((v <= 0.35) & (np.abs(u) <= (v + 0.95) * 0.45))),
    "ell": ("cross", lambda u, v: _plus(u, v) & (v >= -0.36) & (u >= -0.36)),
    "half ring": ("ring", lambda u, v: (np.abs(np.hypot(u, v) - 0.71) <= 0.26) & (u <= 0)),
    "sliver": ("moon", lambda u, v: (np.hypot(u, v) <= 0.97) & (np.hypot(u - 0.22, v) > 0.9)),
    "two-headed arrow": (
        "arrow",
        lambda u, v: np.abs(v) <= np.where(np.abs(u) < 0.45, 0.2, (0.97 - np.abs(u)) * 1.3),
    ),
    "tent": ("house", lambda u, v: _upright_triangle(u, v) & ~((np.abs(u) <= 0.2) & (v >= 0.2))),
    "goblet": ("hourglass", lambda u, v: _hourglass(u, v) & ((v < 0) | (np.abs(u) <= 0.3))),
}
FORMS: dict[str, Form] = {
    **{kind: form for kind, (_, form) in (NEAR_MISSES | LATE_NEAR_MISSES | UNSEEN_NEAR_MISSES).items()},
    **SHAPES,
    PLACEBO: _fish,
}


def blob(u: Field, v: Field, rng: np.random.Generator) -> Mask:
    """Return the mask (H, W) of a random blob: a disc whose edge has waves of two, three and five lobes."""
    distance, angle = polar(u, v)
    edge = 0.68 + sum(
        amplitude * np.sin(lobes * angle + rng.uniform(0, 2 * np.pi))
        for lobes, amplitude in ((2, 0.1), (3, 0.12), (5, 0.1))
    )
    return distance <= edge


def near_misses_of(shape: str) -> tuple[str, ...]:
    """Return the names of an object's near misses, or of the placebo's."""
    kinds = LATE_NEAR_MISSES if shape == PLACEBO else NEAR_MISSES
    return tuple(kind for kind, (missed, _) in kinds.items() if missed == shape)
