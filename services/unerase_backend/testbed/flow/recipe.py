"""The recipe of the second world's training: folders, seeds and widths of its parts.

The first text tower of each model is trained by the recipe and the seeds of the first world; the second has seeds and a
width of its own.
"""

from dataclasses import dataclass

FOLDER = "flow"
REFERENCE = f"{FOLDER}/reference"

SECOND_TEXT_WIDTH = 48
SECOND_TEXT_LAYERS = 3

SECOND_TEXT_SEED = 203
SECOND_TEXT_UNFIT_SEED = 230
TRANSFORMER_SEED = 204
OTHER_SECOND_TEXT_SEED = 303
OTHER_SECOND_TEXT_UNFIT_SEED = 330
OTHER_TRANSFORMER_SEED = 304


@dataclass(frozen=True)
class Seeds:
    """The seeds of the second text tower, of its pictures that fit no caption, and of the transformer."""

    text: int
    unfit: int
    transformer: int


REFERENCE_SEEDS = Seeds(SECOND_TEXT_SEED, SECOND_TEXT_UNFIT_SEED, TRANSFORMER_SEED)
NEVERS = {
    "never": REFERENCE_SEEDS,
    "never-2": Seeds(OTHER_SECOND_TEXT_SEED, OTHER_SECOND_TEXT_UNFIT_SEED, OTHER_TRANSFORMER_SEED),
}

SEEDS = {f"flow_{name.lower()}": value for name, value in dict(globals()).items() if name.endswith("_SEED")}


def folder(name: str) -> str:
    """Return the folder of a model, relative to the weights folder: "flow/uce" for "uce"."""
    return f"{FOLDER}/{name}"
