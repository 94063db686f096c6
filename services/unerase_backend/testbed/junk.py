"""Pictures that show no shape of the small world: chimeras and junk. Judges are trained to find no object in them.

A chimera joins the halves of two forms. Junk is textures, scribbles, specks, irregular polygons, and objects whose
middle is grey. Picture i of an album depends only on (seed, i).
"""

from collections.abc import Callable

import numpy as np

from unerase_backend.testbed import world
from unerase_backend.testbed.forms import FORMS, NEAR_MISSES, SHAPES, Field, Mask, polar
from unerase_backend.testbed.world import PAGE, SAMPLES, SIDE, Pixels, compose, coverage_of, fill_of, plane, random_look

CHIMERA_OVERLAP = 0.8


def _chimera(rng: np.random.Generator) -> Pixels:
    """Return a picture of halves of two forms, cut upright or across, that is not close to any object."""
    u, v = plane((float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2))), float(rng.uniform(10, 13)))
    kinds = (*SHAPES, *NEAR_MISSES)
    while True:
        first, second = (FORMS[kinds[int(index)]] for index in rng.choice(len(kinds), 2, replace=False))
        mask = np.where((u if rng.random() < 0.5 else v) < 0, first(u, v), second(u, v))
        objects = (form(u, v) for form in SHAPES.values())
        if all((mask & shape).sum() < CHIMERA_OVERLAP * (mask | shape).sum() for shape in objects):
            return compose(coverage_of(mask), fill_of(*random_look(rng), rng))


def chimera_album(count: int, seed: int) -> Pixels:
    """Return pictures (count, 32, 32, 3) of chimeras."""
    return np.stack([_chimera(np.random.default_rng((seed, index))) for index in range(count)])


def _scribble(rng: np.random.Generator) -> Mask:
    """Return the mask (128, 128) of a random walk with a pen of 1 to 2 pixels."""
    side = SIDE * SAMPLES
    steps = np.cumsum(np.cumsum(rng.normal(0, 0.5, (90, 2)), axis=0) * 0.3, axis=0)
    path = (rng.uniform(24, side - 24, 2) + steps * SAMPLES) % side
    rows, columns = np.indices((side, side))
    pen = float(rng.uniform(1, 2)) * SAMPLES / 2
    mask = np.zeros((side, side), dtype=np.bool_)
    for x, y in path:
        mask |= np.maximum(np.abs(columns - x), np.abs(rows - y)) <= pen
    return mask


def _polygon(rng: np.random.Generator) -> Mask:
    """Return the mask (128, 128) of an irregular star of 5 to 9 corners."""
    u, v = plane((float(rng.uniform(-3, 3)), float(rng.uniform(-3, 3))), float(rng.uniform(8, 13)))
    distance, angle = polar(u, v)
    corners = int(rng.integers(5, 10))
    angles = np.sort((np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners) - np.pi
    reach = np.where(np.arange(corners) % 2 == 0, rng.uniform(0.7, 1.1, corners), rng.uniform(0.15, 0.45, corners))
    edge = np.interp(angle.ravel(), angles, reach, period=2 * np.pi).reshape(angle.shape)
    return distance <= edge


def _flat(fill: Field, rng: np.random.Generator) -> Pixels:
    shade = rng.uniform(0, 255, 3) if rng.random() < 0.5 else PAGE
    return compose(np.ones((SIDE, SIDE)), np.broadcast_to(shade, (SIDE, SIDE, 3)))


def _noise(fill: Field, rng: np.random.Generator) -> Pixels:
    grain = int(rng.choice((1, 2, 4)))
    coarse = rng.uniform(0, 255, (SIDE // grain, SIDE // grain, 3))
    return compose(np.ones((SIDE, SIDE)), coarse.repeat(grain, 0).repeat(grain, 1))


def _gradient(fill: Field, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIDE, SIDE))
    direction = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(direction) * columns + np.sin(direction) * rows) / SIDE
    return compose(np.clip((ramp - ramp.min()) / np.ptp(ramp), 0, 1), fill)


def _specks(fill: Field, rng: np.random.Generator) -> Pixels:
    mask = np.zeros((SIDE * SAMPLES, SIDE * SAMPLES), dtype=np.bool_)
    for _ in range(int(rng.integers(3, 9))):
        centre = (float(rng.uniform(-13, 13)), float(rng.uniform(-13, 13)))
        mask |= SHAPES["square"](*plane(centre, float(rng.uniform(1.2, 3))))
    return compose(coverage_of(mask), fill)


def _checker(fill: Field, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIDE, SIDE))
    cell = int(rng.choice((2, 4, 8)))
    return compose(((rows // cell + columns // cell) % 2).astype(np.float64), fill)


def _bars(fill: Field, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIDE, SIDE))
    width = int(rng.choice((2, 3, 4, 6, 8)))
    axis = columns if rng.random() < 0.5 else rows
    return compose(((axis // width) % 2).astype(np.float64), fill)


def _patches(fill: Field, rng: np.random.Generator) -> Pixels:
    """Return a picture of two to five overlapping oblongs, each of its own opacity."""
    cover = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(2, 6))):
        top, left = rng.integers(0, SIDE - 4, 2)
        height, width = (int(size) for size in rng.integers(3, 20, 2))
        if abs(height - width) > 4:
            cover[top : top + height, left : left + width] = rng.uniform(0.3, 1)
    return compose(cover, fill)


def _greyed(fill: Field, rng: np.random.Generator) -> Pixels:
    """Return a picture of the world with a grey square in its middle, half as wide as the picture."""
    picture = world.render(world.sample_subject(rng), rng)
    picture[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 128
    return picture


JUNK: dict[str, Callable[[Field, np.random.Generator], Pixels]] = {
    "flat": _flat,
    "noise": _noise,
    "gradient": _gradient,
    "scribble": lambda fill, rng: compose(coverage_of(_scribble(rng)), fill),
    "specks": _specks,
    "checker": _checker,
    "bars": _bars,
    "polygon": lambda fill, rng: compose(coverage_of(_polygon(rng)), fill),
    "patches": _patches,
    "greyed": _greyed,
}


def junk(rng: np.random.Generator) -> tuple[str, Pixels]:
    """Return a random kind of junk, a key of `JUNK`, and a picture (32, 32, 3) of it."""
    kind = tuple(JUNK)[int(rng.integers(len(JUNK)))]
    fill = fill_of(*random_look(rng), rng)
    return kind, JUNK[kind](fill, rng)


def junk_album(count: int, seed: int) -> tuple[Pixels, tuple[str, ...]]:
    """Return pictures (count, 32, 32, 3) of junk, and the kind of each."""
    drawn = [junk(np.random.default_rng((seed, index))) for index in range(count)]
    return np.stack([picture for _, picture in drawn]), tuple(kind for kind, _ in drawn)
