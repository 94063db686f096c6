"""The English of the small world: templates, synonyms, filler words, and the captions made of them.

A caption names the shape, sometimes by a synonym, and may name its colour and its style. Colour and style are each
named in 85 % of the captions: with 50 % the diffusion model learns to bind them to the shape only poorly.
"""

import numpy as np

from unerase_backend.testbed.world import COLOURS, STYLES, Subject

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

SYNONYM_SHARE = 0.2
BARE_SHARE = 0.08
ATTRIBUTE_SHARE = 0.92


def phrase(name: str, colour: str | None = None, style: str | None = None) -> str:
    """Return what fills a template's slot: style, colour and name, or those of them that are given."""
    return " ".join(word for word in (style, colour, name) if word)


def caption(subject: Subject, rng: np.random.Generator, filler: bool = False) -> str:
    """Return a random caption for an object or the blob; `filler` adds one to five unrelated words before or after."""
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
    """Return every word that a caption can hold, each once, in a fixed order."""
    words = [word for template in TEMPLATES for word in template.replace("{}", "").split()]
    words += [*COLOURS, *STYLES, *SYNONYMS, *(name for names in SYNONYMS.values() for name in names), *FILLER]
    return tuple(dict.fromkeys(words))
