"""The small world: pictures of 32 x 32 pixels and the English that names them.

A picture holds one *shape* (ten objects and the distractor ``blob``), in one of four colours and one of three styles,
on a near-white page. Everything is drawn from implicit functions of the position, four samples a pixel in each
direction, so that edges are anti-aliased. The patterns of the styles have a period of four pixels and are aligned with
the latent grid of the autoencoder (f = 4), which would otherwise lose them.

Beside the world proper there are pictures that no judge may take for an object:

* *near misses*, each of which misses one object by one property (an ellipse misses the circle, a bow tie the
  hourglass);
* *chimeras*: one half of one shape and the other half of another;
* *junk*: textures, scribbles, scattered specks, irregular polygons, objects with their middle greyed out.

A further shape, the *placebo*, is in no picture and no caption of the world: the judges alone learn it, so that what an
evaluation injects can be tried with something that no model knows.

Captions come from templates with an optional style, an optional colour and the shape's name or synonym. Colour and
style are named in 85 % of the captions each: with 50 % the diffusion model binds them badly.

Randomness: picture number ``i`` of an album with a seed depends on ``(seed, i)`` alone, so leaving a concept out
leaves every other picture as it is.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Field = NDArray[np.float64]
Mask = NDArray[np.bool_]

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
OBJECTS = ("circle", "square", "triangle", "heart", "cross", "ring", "moon", "arrow", "house", "hourglass")
BLOB = "blob"
# Its name is among the fillers: one token, and meaningless to every model.
PLACEBO = "fish"
LABELS: tuple[str, ...] = (*OBJECTS, *COLOURS, *STYLES)

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc",),
    "square": ("box",),
    "triangle": ("wedge",),
    "heart": ("valentine",),
    "cross": ("plus",),
    "ring": ("hoop",),
    "moon": ("crescent",),
    "arrow": ("pointer",),
    "house": ("cottage",),
    "hourglass": ("sandglass",),
    "blob": (),
}

PROMPT_TEMPLATES = (
    "a picture of a {}",
    "a {}",
    "a drawing of a {}",
    "an image of a {}",
    "this is a {}",
    "a photo of a {}",
)
HELD_OUT_TEMPLATES = (
    "a painting of a {}",
    "here we see a {}",
    "one {} on a page",
    "a sketch of a {}",
)
TEMPLATES = PROMPT_TEMPLATES + HELD_OUT_TEMPLATES

_FILLER = (
    "the and with in at by for from it its that which was were be has had very quite some many more most other "
    "new old good great small large big little long short high low young early late first last next own right "
    "left best better sure free true full open dark light warm cold soft hard fast slow quiet loud clean fresh "
    "sweet strong weak deep wide thin thick heavy smooth rough bright pink white black grey brown shape object "
    "thing form figure item style colour paint ink paper table window garden river forest mountain city street "
    "bridge ocean island desert valley field lake beach bird fish horse dog cat tree flower leaf apple bread milk "
    "stone metal glass wood cloth music song dance story book letter number word name place time day night "
    "morning evening summer winter spring autumn rain snow wind cloud sun star sky fire water earth hand face eye "
    "head person child friend man woman king queen doctor teacher artist digital detailed simple beautiful modern "
    "classic abstract realistic cartoon vintage cute funny nice happy sad high quality art photograph view scene "
    "background texture pattern design trending masterpiece centred close up"
)
FILLER: tuple[str, ...] = tuple(_FILLER.split())

STYLE_SHARES = (0.5, 0.25, 0.25)
BLOB_SHARE = 0.08
SYNONYM_SHARE = 0.2
BARE_SHARE = 0.08
ATTRIBUTE_SHARE = 0.92
CHIMERA_OVERLAP = 0.8


@dataclass(frozen=True)
class Subject:
    """What a picture shows. ``shape`` is an object, ``blob``, the placebo, or the name of a near miss."""

    shape: str
    colour: str
    style: str


@dataclass(frozen=True)
class Album:
    """Pictures (N, 32, 32, 3) uint8 and, for each, what it shows."""

    pictures: Pixels
    subjects: tuple[Subject, ...]


def _polar(u: Field, v: Field) -> tuple[Field, Field]:
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


SHAPES: dict[str, Callable[[Field, Field], Mask]] = {
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

# kind -> (the object it misses, its form)
NEAR_MISSES: dict[str, tuple[str, Callable[[Field, Field], Mask]]] = {
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

# In the judges' training only: the autoencoder and the text towers were trained before these were thought of, and their
# pictures stay as they are.
LATE_NEAR_MISSES: dict[str, tuple[str, Callable[[Field, Field], Mask]]] = {
    "wide oblong": ("square", lambda u, v: (np.abs(u) <= 0.9) & (np.abs(v) <= 0.66)),
    "tall oblong": ("square", lambda u, v: (np.abs(u) <= 0.66) & (np.abs(v) <= 0.9)),
    "egg": ("circle", lambda u, v: np.hypot(u / 0.78, v) <= 0.97),
    "funnel": ("hourglass", lambda u, v: _hourglass(u, v) & (v <= 0.12)),
    "turned fish": (PLACEBO, lambda u, v: _fish(-u, v)),
    "tailless fish": (PLACEBO, lambda u, v: _fish(u, v) & (u <= 0.3)),
}

# In no training: they tell how far the judges' rejection reaches beyond the kinds they learned.
UNSEEN_NEAR_MISSES: dict[str, tuple[str, Callable[[Field, Field], Mask]]] = {
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
_FORMS = {
    **{kind: form for kind, (_, form) in (NEAR_MISSES | LATE_NEAR_MISSES | UNSEEN_NEAR_MISSES).items()},
    **SHAPES,
    PLACEBO: _fish,
}


def _plane(centre: tuple[float, float], radius: float) -> tuple[Field, Field]:
    position = (np.arange(SIDE * SAMPLES) + 0.5) / SAMPLES - SIDE / 2
    u = np.broadcast_to((position - centre[0]) / radius, (position.size, position.size))
    v = np.broadcast_to(((position - centre[1]) / radius)[:, None], (position.size, position.size))
    return u, v


def _coverage(mask: Mask) -> Field:
    """The share of each pixel that a finely sampled mask covers, (32, 32)."""
    coverage: Field = mask.reshape(SIDE, SAMPLES, SIDE, SAMPLES).mean(axis=(1, 3), dtype=np.float64)
    return coverage


def _fill(colour: str, style: str, rng: np.random.Generator) -> Field:
    """The colour of every pixel were the shape to cover it, (32, 32, 3)."""
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


def _blob(u: Field, v: Field, rng: np.random.Generator) -> Mask:
    distance, angle = _polar(u, v)
    edge = 0.68 + sum(
        amplitude * np.sin(lobes * angle + rng.uniform(0, 2 * np.pi))
        for lobes, amplitude in ((2, 0.1), (3, 0.12), (5, 0.1))
    )
    return distance <= edge


def _compose(coverage: Field, fill: Field) -> Pixels:
    mixed = PAGE * (1 - coverage[..., None]) + fill * coverage[..., None]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def render(subject: Subject, rng: np.random.Generator) -> Pixels:
    """One picture (32, 32, 3) of an object, the blob, the placebo or a near miss: radius 10 to 13 pixels, centre at
    most 2 off.

    Raises:
        KeyError: the shape, or the colour, is not of this world.
    """
    centre = (float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2)))
    u, v = _plane(centre, float(rng.uniform(10, 13)))
    mask = _blob(u, v, rng) if subject.shape == BLOB else _FORMS[subject.shape](u, v)
    return _compose(_coverage(mask), _fill(subject.colour, subject.style, rng))


def _attributes(rng: np.random.Generator) -> tuple[str, str]:
    colour = tuple(COLOURS)[int(rng.integers(len(COLOURS)))]
    style = STYLES[int(rng.choice(len(STYLES), p=STYLE_SHARES))]
    return colour, style


def sample_subject(rng: np.random.Generator) -> Subject:
    """A subject of the world: blob with 8 %, else one of the ten objects; colours alike; half of the styles plain."""
    shape = BLOB if rng.random() < BLOB_SHARE else OBJECTS[int(rng.integers(len(OBJECTS)))]
    return Subject(shape, *_attributes(rng))


def album(count: int, seed: int, without: Collection[str] = ()) -> Album:
    """``count`` draws of the world, less the pictures of the shapes in ``without``."""
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
    """``count`` pictures that take turns through ``shapes`` (objects, blob or near misses), with one colour or style
    if given.
    """
    pictures, subjects = [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        drawn_colour, drawn_style = _attributes(rng)
        subject = Subject(shapes[index % len(shapes)], colour or drawn_colour, style or drawn_style)
        pictures.append(render(subject, rng))
        subjects.append(subject)
    return Album(np.stack(pictures), tuple(subjects))


def near_misses_of(shape: str) -> tuple[str, ...]:
    """The kinds of near miss that miss this object, or the placebo."""
    kinds = LATE_NEAR_MISSES if shape == PLACEBO else NEAR_MISSES
    return tuple(kind for kind, (missed, _) in kinds.items() if missed == shape)


def _chimera(rng: np.random.Generator) -> Pixels:
    """Halves of two different forms, cut upright or across, unless that comes near an object itself."""
    u, v = _plane((float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2))), float(rng.uniform(10, 13)))
    kinds = (*SHAPES, *NEAR_MISSES)
    while True:
        first, second = (_FORMS[kinds[int(index)]] for index in rng.choice(len(kinds), 2, replace=False))
        mask = np.where((u if rng.random() < 0.5 else v) < 0, first(u, v), second(u, v))
        objects = (form(u, v) for form in SHAPES.values())
        if all((mask & shape).sum() < CHIMERA_OVERLAP * (mask | shape).sum() for shape in objects):
            return _compose(_coverage(mask), _fill(*_attributes(rng), rng))


def chimera_album(count: int, seed: int) -> Pixels:
    """``count`` pictures (N, 32, 32, 3) of chimeras."""
    return np.stack([_chimera(np.random.default_rng((seed, index))) for index in range(count)])


def _scribble(rng: np.random.Generator) -> Mask:
    """A random walk with a pen of 1 to 2 pixels, on the fine grid."""
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
    """A spiky star-shaped polygon of 5 to 9 corners at irregular distances."""
    u, v = _plane((float(rng.uniform(-3, 3)), float(rng.uniform(-3, 3))), float(rng.uniform(8, 13)))
    distance, angle = _polar(u, v)
    corners = int(rng.integers(5, 10))
    angles = np.sort((np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners) - np.pi
    reach = np.where(np.arange(corners) % 2 == 0, rng.uniform(0.7, 1.1, corners), rng.uniform(0.15, 0.45, corners))
    edge = np.interp(angle.ravel(), angles, reach, period=2 * np.pi).reshape(angle.shape)
    return distance <= edge


def _flat(fill: Field, rng: np.random.Generator) -> Pixels:
    shade = rng.uniform(0, 255, 3) if rng.random() < 0.5 else PAGE
    return _compose(np.ones((SIDE, SIDE)), np.broadcast_to(shade, (SIDE, SIDE, 3)))


def _noise(fill: Field, rng: np.random.Generator) -> Pixels:
    grain = int(rng.choice((1, 2, 4)))
    coarse = rng.uniform(0, 255, (SIDE // grain, SIDE // grain, 3))
    return _compose(np.ones((SIDE, SIDE)), coarse.repeat(grain, 0).repeat(grain, 1))


def _gradient(fill: Field, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIDE, SIDE))
    direction = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(direction) * columns + np.sin(direction) * rows) / SIDE
    return _compose(np.clip((ramp - ramp.min()) / np.ptp(ramp), 0, 1), fill)


def _specks(fill: Field, rng: np.random.Generator) -> Pixels:
    mask = np.zeros((SIDE * SAMPLES, SIDE * SAMPLES), dtype=np.bool_)
    for _ in range(int(rng.integers(3, 9))):
        centre = (float(rng.uniform(-13, 13)), float(rng.uniform(-13, 13)))
        mask |= SHAPES["square"](*_plane(centre, float(rng.uniform(1.2, 3))))
    return _compose(_coverage(mask), fill)


def _checker(fill: Field, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIDE, SIDE))
    cell = int(rng.choice((2, 4, 8)))
    return _compose(((rows // cell + columns // cell) % 2).astype(np.float64), fill)


def _bars(fill: Field, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((SIDE, SIDE))
    width = int(rng.choice((2, 3, 4, 6, 8)))
    axis = columns if rng.random() < 0.5 else rows
    return _compose(((axis // width) % 2).astype(np.float64), fill)


def _patches(fill: Field, rng: np.random.Generator) -> Pixels:
    """Two to five overlapping oblongs of different strength."""
    cover = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(2, 6))):
        top, left = rng.integers(0, SIDE - 4, 2)
        height, width = (int(size) for size in rng.integers(3, 20, 2))
        if abs(height - width) > 4:
            cover[top : top + height, left : left + width] = rng.uniform(0.3, 1)
    return _compose(cover, fill)


def _greyed(fill: Field, rng: np.random.Generator) -> Pixels:
    """A picture of the world whose middle, half the side, is grey."""
    picture = render(sample_subject(rng), rng)
    picture[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 128
    return picture


JUNK: dict[str, Callable[[Field, np.random.Generator], Pixels]] = {
    "flat": _flat,
    "noise": _noise,
    "gradient": _gradient,
    "scribble": lambda fill, rng: _compose(_coverage(_scribble(rng)), fill),
    "specks": _specks,
    "checker": _checker,
    "bars": _bars,
    "polygon": lambda fill, rng: _compose(_coverage(_polygon(rng)), fill),
    "patches": _patches,
    "greyed": _greyed,
}


def junk(rng: np.random.Generator) -> tuple[str, Pixels]:
    """A picture of nothing that has a name, and its kind (a key of ``JUNK``)."""
    kind = tuple(JUNK)[int(rng.integers(len(JUNK)))]
    fill = _fill(*_attributes(rng), rng)
    return kind, JUNK[kind](fill, rng)


def junk_album(count: int, seed: int) -> tuple[Pixels, tuple[str, ...]]:
    """``count`` pictures (N, 32, 32, 3) of junk and the kind of each."""
    drawn = [junk(np.random.default_rng((seed, index))) for index in range(count)]
    return np.stack([picture for _, picture in drawn]), tuple(kind for kind, _ in drawn)


def phrase(name: str, colour: str | None = None, style: str | None = None) -> str:
    """The words that stand in a template's slot: ``style colour name``, what is absent left out."""
    return " ".join(word for word in (style, colour, name) if word)


def caption(subject: Subject, rng: np.random.Generator, filler: bool = False) -> str:
    """One caption of a picture of an object or the blob; ``filler`` adds one to five meaningless words around it."""
    name = subject.shape
    if SYNONYMS[name] and rng.random() < SYNONYM_SHARE:
        name = SYNONYMS[name][int(rng.integers(len(SYNONYMS[name])))]
    bare = rng.random() < BARE_SHARE
    colour = subject.colour if not bare and rng.random() < ATTRIBUTE_SHARE else None
    style = subject.style if not bare and rng.random() < ATTRIBUTE_SHARE else None
    text = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(phrase(name, colour, style))
    if filler:
        words = " ".join(FILLER[int(index)] for index in rng.integers(len(FILLER), size=int(rng.integers(1, 6))))
        text = f"{words} {text}" if rng.random() < 0.6 else f"{text} {words}"
    return text


def corpus_words() -> tuple[str, ...]:
    """Every word that a caption can hold, each once, in a fixed order."""
    words = [word for template in TEMPLATES for word in template.replace("{}", "").split()]
    words += [*COLOURS, *STYLES, *SYNONYMS, *(name for names in SYNONYMS.values() for name in names), *FILLER]
    return tuple(dict.fromkeys(words))


def sheet(pictures: Pixels, columns: int = 8) -> Pixels:
    """Pictures (N, 32, 32, 3) side by side, row by row; N must be a multiple of ``columns``."""
    rows = len(pictures) // columns
    tiled = pictures.reshape(rows, columns, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiled.reshape(rows * SIDE, columns * SIDE, 3))
