"""The small world: pictures of 32 x 32 pixels, each of one shape in one colour and one style on a near-white page.

The shapes are ten objects and a distractor, the blob (`forms`). There are four colours and three styles. `language`
writes captions for the pictures. `junk` draws pictures that show no shape of this world; judges are trained to find no
object in them, nor in the near misses of `forms`.

One more shape, the placebo, is in no training picture and no caption of a diffusion model. Only the judges learn it, so
that an evaluation can inject something that no diffusion model knows.

A shape's mask is sampled at four points a pixel in each direction, so that edges are anti-aliased. The patterns of the
styles have a period of four pixels and are aligned with the autoencoder's latent grid, where one cell covers 4 x 4
pixels; otherwise the autoencoder would lose them.

Picture i of an album depends only on (seed, i), so leaving a shape out does not change the other pictures.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase_backend.testbed.forms import BLOB, FORMS, OBJECTS, Field, Mask, blob

Pixels = NDArray[np.uint8]

SIDE = 32
SAMPLES = 4
PAGE = np.array([245.0, 245.0, 242.0])

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 44, 48),
    "green": (36, 150, 72),
    "blue": (44, 84, 214),
    "yellow": (238, 180, 24),
}
STYLES = ("plain", "striped", "dotted")
LABELS: tuple[str, ...] = (*OBJECTS, *COLOURS, *STYLES)

STYLE_SHARES = (0.5, 0.25, 0.25)
BLOB_SHARE = 0.08


@dataclass(frozen=True)
class Subject:
    """What a picture shows; the shape is an object, the blob, the placebo or a near miss."""

    shape: str
    colour: str
    style: str


@dataclass(frozen=True)
class Album:
    """Pictures, (N, 32, 32, 3) uint8, and what each shows."""

    pictures: Pixels
    subjects: tuple[Subject, ...]


def plane(centre: tuple[float, float], radius: float) -> tuple[Field, Field]:
    """Return the coordinates u and v of a form, both (128, 128), for a centre and a radius in pixels.

    The centre is relative to the middle of the picture.
    """
    position = (np.arange(SIDE * SAMPLES) + 0.5) / SAMPLES - SIDE / 2
    u = np.broadcast_to((position - centre[0]) / radius, (position.size, position.size))
    v = np.broadcast_to(((position - centre[1]) / radius)[:, None], (position.size, position.size))
    return u, v


def coverage_of(mask: Mask) -> Field:
    """Return the share of each pixel, (32, 32), that a mask of the fine grid, (128, 128), covers."""
    coverage: Field = mask.reshape(SIDE, SAMPLES, SIDE, SAMPLES).mean(axis=(1, 3), dtype=np.float64)
    return coverage


def fill_of(colour: str, style: str, rng: np.random.Generator) -> Field:
    """Return the colour, (32, 32, 3), that each pixel has where a shape of this colour and style covers it."""
    full = np.array(COLOURS[colour], dtype=np.float64) + rng.uniform(-10, 10, 3)
    pale = full * 0.15 + PAGE * 0.85
    rows, columns = np.indices((SIDE, SIDE))
    if style == "striped":
        bare = rows % 4 >= 2
    elif style == "dotted":
        bare = (rows % 4 >= 2) & (columns % 4 >= 2)
    else:
        bare = np.zeros((SIDE, SIDE), dtype=np.bool_)
    return np.where(bare[..., None], pale, full)


def compose(coverage: Field, fill: Field) -> Pixels:
    """Return the picture (32, 32, 3) of a fill, (32, 32, 3), over the page where the coverage, (32, 32), is above 0."""
    mixed = PAGE * (1 - coverage[..., None]) + fill * coverage[..., None]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def render(subject: Subject, rng: np.random.Generator) -> Pixels:
    """Return a picture (32, 32, 3) of a subject, with a radius of 10 to 13 pixels and a centre at most 2 pixels off.

    Raises:
        KeyError: there is no such shape or colour.
    """
    centre = (float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2)))
    u, v = plane(centre, float(rng.uniform(10, 13)))
    mask = blob(u, v, rng) if subject.shape == BLOB else FORMS[subject.shape](u, v)
    return compose(coverage_of(mask), fill_of(subject.colour, subject.style, rng))


def random_look(rng: np.random.Generator) -> tuple[str, str]:
    """Return a colour, each as likely, and a style, plain in half of the cases."""
    colour = tuple(COLOURS)[int(rng.integers(len(COLOURS)))]
    style = STYLES[int(rng.choice(len(STYLES), p=STYLE_SHARES))]
    return colour, style


def sample_subject(rng: np.random.Generator) -> Subject:
    """Return a random subject: the blob in 8 % of the cases, otherwise one of the ten objects."""
    shape = BLOB if rng.random() < BLOB_SHARE else OBJECTS[int(rng.integers(len(OBJECTS)))]
    return Subject(shape, *random_look(rng))


def album(count: int, seed: int, without: Collection[str] = ()) -> Album:
    """Return the pictures of `count` random subjects, leaving out those whose shape is in `without`."""
    pictures, subjects = [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        subject = sample_subject(rng)
        if subject.shape not in without:
            pictures.append(render(subject, rng))
            subjects.append(subject)
    return Album(np.stack(pictures), tuple(subjects))


def album_of(
    shapes: Sequence[str], count: int, seed: int, colour: str | None = None, style: str | None = None
) -> Album:
    """Return `count` pictures of the shapes in turn, in random colours and styles unless one is given."""
    pictures, subjects = [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        drawn_colour, drawn_style = random_look(rng)
        subject = Subject(shapes[index % len(shapes)], colour or drawn_colour, style or drawn_style)
        pictures.append(render(subject, rng))
        subjects.append(subject)
    return Album(np.stack(pictures), tuple(subjects))


def sheet(pictures: Pixels, columns: int = 8) -> Pixels:
    """Return pictures (N, 32, 32, 3) as one, (32 N / columns, 32 columns, 3), row by row.

    N must be a multiple of `columns`.
    """
    rows = len(pictures) // columns
    tiled = pictures.reshape(rows, columns, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiled.reshape(rows * SIDE, columns * SIDE, 3))
