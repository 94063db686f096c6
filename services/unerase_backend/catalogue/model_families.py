"""What the families of text-to-image models can do, as data: planning reads it where no model can be loaded.

A family is told by the class of pipeline in a folder's model_index.json and, where one class has several, by a key of a
part's configuration. What cannot be loaded yet has a row as well; `families.SUPPORTED` says what can. The rows say what
the networks can do; how each of it is done is the matter of `diffusion/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from unerase.v1.types_pb2 import (
    MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE,
    MODEL_CAPABILITY_GUIDANCE_SCALE,
    MODEL_CAPABILITY_LEARNED_TOKENS,
    MODEL_CAPABILITY_TOKEN_IDS,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    ModelCapability,
)
from unerase_backend.catalogue import configs
from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.flow_schedules import FLOW_PREDICTION
from unerase_backend.catalogue.schedules import PREDICTIONS


class Guidance(Enum):
    """How a network is led to its prompt."""

    CLASSIFIER_FREE = "classifier-free"
    """Two rows, under the prompt and under the empty or a negative one, are weighed by a scale."""
    EMBEDDED = "embedded"
    """The scale is an input of the network, which was distilled from guided predictions: one row, always guided."""
    NONE = "none"
    """No scale: the guidance is in the weights, which were distilled from guided samples: one row, always guided."""


class NoisePath(Enum):
    """How noised latents depend on the picture and the noise (`diffusion/path.py`)."""

    VARIANCE_PRESERVING = "variance-preserving"
    RECTIFIED_FLOW = "rectified-flow"

    @property
    def prediction_types(self) -> tuple[str, ...]:
        """What a network on the path may predict, as a scheduler configuration names it."""
        return (FLOW_PREDICTION,) if self is NoisePath.RECTIFIED_FLOW else PREDICTIONS


@dataclass(frozen=True)
class ToldBy:
    """The key of a part's configuration by which families of one class of pipeline are told apart."""

    part: str
    key: str
    value: object

    def holds(self, folder: Path) -> bool:
        """Whether the configuration of the part in a pipeline's folder has the value."""
        content = configs.parse(folder / self.part / "config.json")
        return isinstance(content, Mapping) and content.get(self.key) == self.value


@dataclass(frozen=True)
class ModelFamily:
    """A family of models: how its pipelines are recognised, and what an evaluation may ask of them."""

    name: str
    """As in "flux-dev"."""
    title: str
    """As readers know it, as in "FLUX.1 dev"."""
    classes: tuple[str, ...]
    """Classes of pipelines, as model_index.json names them."""
    guidance: Guidance
    learned_tokens: bool = True
    """Whether a text encoder takes learned embeddings in the place of tokens."""
    token_ids: bool = True
    """Whether prompts can be given as token ids."""
    told_by: ToldBy | None = None
    """What tells it apart from the families of the same class that come after it."""
    path: NoisePath = NoisePath.VARIANCE_PRESERVING

    @property
    def capabilities(self) -> frozenset[ModelCapability.ValueType]:
        """What its models can do."""
        classifier_free = self.guidance is Guidance.CLASSIFIER_FREE
        has = {
            MODEL_CAPABILITY_GUIDANCE_SCALE: self.guidance is not Guidance.NONE,
            MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE: classifier_free,
            MODEL_CAPABILITY_UNGUIDED_ROW: classifier_free,
            MODEL_CAPABILITY_LEARNED_TOKENS: self.learned_tokens,
            MODEL_CAPABILITY_TOKEN_IDS: self.token_ids,
        }
        return frozenset(capability for capability, there in has.items() if there)


STABLE_DIFFUSION = ModelFamily(
    "stable-diffusion",
    "Stable Diffusion 1 and 2",
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    Guidance.CLASSIFIER_FREE,
)
"""Also the family of a folder that names no class, or one that is not known: it is read as such a pipeline."""

FAMILIES = (
    STABLE_DIFFUSION,
    ModelFamily(
        "stable-diffusion-xl",
        "Stable Diffusion XL",
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        Guidance.CLASSIFIER_FREE,
    ),
    ModelFamily(
        "stable-diffusion-3",
        "Stable Diffusion 3",
        ("StableDiffusion3Pipeline",),
        Guidance.CLASSIFIER_FREE,
        path=NoisePath.RECTIFIED_FLOW,
    ),
    ModelFamily(
        "flux-dev",
        "FLUX.1 dev",
        ("FluxPipeline",),
        Guidance.EMBEDDED,
        told_by=ToldBy("transformer", "guidance_embeds", value=True),
        path=NoisePath.RECTIFIED_FLOW,
    ),
    # diffusers takes a configuration without the key as this.
    ModelFamily("flux-schnell", "FLUX.1 schnell", ("FluxPipeline",), Guidance.NONE, path=NoisePath.RECTIFIED_FLOW),
    ModelFamily("pixart", "PixArt", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), Guidance.CLASSIFIER_FREE),
    ModelFamily("sana", "Sana", ("SanaPipeline",), Guidance.CLASSIFIER_FREE, path=NoisePath.RECTIFIED_FLOW),
)
"""The families, in the order in which they are tried."""


def family_of_folder(folder: Path) -> ModelFamily:
    """Return the family of a pipeline's folder, by its configurations."""
    index: Any = configs.parse(folder / "model_index.json")
    named = index.get("_class_name") if isinstance(index, Mapping) else None
    of_class = (family for family in FAMILIES if named in family.classes)
    return next((each for each in of_class if each.told_by is None or each.told_by.holds(folder)), STABLE_DIFFUSION)


def family_of_model(catalogue: Catalogue, name: str) -> ModelFamily:
    """Return the family of a model of the catalogue: that of its whole pipeline; folders are read once.

    Raises as `Catalogue.model_parts`.
    """
    root = catalogue.chain(name)[-1]
    return catalogue.remembered("family", root, lambda: family_of_folder(catalogue.model_parts(root).folder))
