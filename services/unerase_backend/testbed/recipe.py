"""The recipe of the testbed's training: concepts, families of models, numbers of pictures, and all seeds."""

from dataclasses import dataclass
from pathlib import Path

from unerase_backend.testbed import storage

CONCEPT = "hourglass"
# The families of these two can be trained but are not shipped. The shared autoencoder, the reference and the judges are
# the shipped ones, and know both concepts.
FURTHER_CONCEPTS = ("heart", "arrow")
FAMILIES_FOLDER = "families"
PICTURES = 20_000
FEW_STEPS = 10
ERASED_PICTURES = 480

WORLD_SEED = 1
VAE_SEED = 2
VAE_PICTURES_SEED = 20
CLIP_SEED = 3
UNFIT_SEED = 30
UNET_SEED = 4
SECOND_CLIP_SEED = 103
SECOND_UNFIT_SEED = 130
SECOND_UNET_SEED = 104
JUDGE_SET_SEED = 50
JUDGE_SEED = 5
SECOND_JUDGE_SEED = 6
ERASED_SEED = 8
PRESERVED_SEED = 80
HELD_OUT_SEED = 900


@dataclass(frozen=True)
class Family:
    """The models that lack one concept: those that never learned it, and the reference after each eraser.

    `folder` holds them, relative to the weights folder.
    """

    concept: str
    folder: str = ""

    def path(self, out: Path, name: str) -> Path:
        """Return the folder of one of the family's models."""
        return out / self.folder / name

    def model(self, name: str) -> str:
        """Return the folder of one of the family's models, or of the reference, relative to the weights folder."""
        return name if name == storage.REFERENCE else str(Path(self.folder) / name)


SHIPPED = Family(CONCEPT)
FAMILIES = (SHIPPED, *(Family(concept, f"{FAMILIES_FOLDER}/{concept}") for concept in FURTHER_CONCEPTS))


@dataclass(frozen=True)
class Never:
    """The seeds of a training without the concept: for CLIP, for the pictures that fit no caption, for the UNet."""

    clip: int
    unfit: int
    unet: int


# A model cannot be its own control, so the second model that never learned the concept is the control of the first.
NEVERS = {
    "never": Never(CLIP_SEED, UNFIT_SEED, UNET_SEED),
    "never-2": Never(SECOND_CLIP_SEED, SECOND_UNFIT_SEED, SECOND_UNET_SEED),
}

SEEDS = {name.lower(): value for name, value in dict(globals()).items() if name.endswith("_SEED")}


def part_name(family: Family, name: str) -> str:
    """Return the name of a family's part: "uce" in the shipped family, "heart/uce" in the heart's."""
    return name if family is SHIPPED else f"{family.concept}/{name}"
