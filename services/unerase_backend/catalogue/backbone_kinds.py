"""The families of models that can be audited: what a pipeline's folder of each consists of.

A family is a class of `diffusion/backbones/` or of a third party (entry point `unerase.backbones`), registered by the
decorator `diffusion.backbone.backbone`. Modules of backbones import torch only where they compute, because the
catalogue reads their parts in processes without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

from unerase_backend.catalogue.findings import Findings
from unerase_backend.runtime.components import Components


class Role(Enum):
    """What a part of a pipeline is for."""

    DENOISER = "denoiser"
    AUTOENCODER = "autoencoder"
    TEXT_ENCODER = "text encoder"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Part:
    """A part of a pipeline's folder: the class that it must be of, and what it is for."""

    kind: str
    """The class, of diffusers or of transformers, as in `UNet2DConditionModel`."""
    role: Role
    required: bool = True
    """Whether a pipeline may not lack it; one that may is `[null, null]` in model_index.json."""
    others: tuple[str, ...] = ()
    """Further classes that are the same to this family."""

    @property
    def library(self) -> str:
        """The library that has the class."""
        return "diffusers" if self.role in (Role.DENOISER, Role.AUTOENCODER) else "transformers"

    @property
    def stem(self) -> str:
        """The name of its file of weights, without endings; empty for a part without weights."""
        return {"diffusers": "diffusion_pytorch_model", "transformers": "model"}[self.library] * self.weighs

    @property
    def sentencepiece(self) -> bool:
        """Whether it is a tokenizer whose vocabulary may be a `.model` file."""
        return self.role is Role.TOKENIZER and not self.kind.startswith("CLIP")

    @property
    def weighs(self) -> bool:
        """Whether it has weights."""
        return self.role is not Role.TOKENIZER


Configs = Mapping[str, Mapping[str, Any]]
Parts = Mapping[str, Part]


class BackboneKind(Protocol):
    """What the catalogue needs to know of a family."""

    family: ClassVar[str]
    """Its name, as in `stable-diffusion`."""
    title: ClassVar[str]
    """Its name for readers, as in "Stable Diffusion 1 and 2"."""
    pipelines: ClassVar[tuple[str, ...]]
    """The classes of diffusers' pipelines that model_index.json may name."""
    parts: ClassVar[Parts]
    """The parts of its folder."""
    default_sequence_length: ClassVar[int]
    """Tokens of a prompt in a text encoder without a length of its own, as the pipeline has it."""
    lower_case: ClassVar[bool]
    """Whether such an encoder reads prompts in lower case, without spaces at their ends."""

    @classmethod
    def index_problem(cls, index: Mapping[str, Any]) -> str:
        """Return why a folder with this model_index.json cannot be audited; empty if it can."""

    @classmethod
    def sequence_length_of(cls, index: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt in a text encoder without a length of its own, by model_index.json."""

    @classmethod
    def index_settings(cls, index: Mapping[str, Any]) -> Mapping[str, object]:
        """Return what model_index.json sets beside the parts, where that is not as the family mostly has it."""

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find what keeps the parts of a folder from working together, by their configurations alone."""

    @classmethod
    def build(cls, part: str, config: Mapping[str, Any]) -> Any:
        """Return a part's module as its configuration says."""


BACKBONES = Components[type[BackboneKind]](
    "family of models", "unerase_backend.diffusion.backbones", "unerase.backbones"
)


def backbone_of(pipeline_class: str) -> type[BackboneKind] | None:
    """Return the family of a class of pipeline; None if it cannot be audited."""
    return next((kind for kind in BACKBONES.all().values() if pipeline_class in kind.pipelines), None)


def of_role(parts: Parts, *roles: Role) -> list[str]:
    """Return the names of the parts for some purposes, in their order."""
    return [name for name, part in parts.items() if part.role in roles]


def denoiser_of(parts: Parts) -> str:
    """Return the name of the denoiser's part: `unet` or `transformer`."""
    (name,) = of_role(parts, Role.DENOISER)
    return name


def tokenizer_of(encoder: str) -> str:
    """Return the tokenizer's part of a text encoder's: `tokenizer_2` for `text_encoder_2`."""
    return encoder.replace("text_encoder", "tokenizer")


def encoder_of(tokenizer: str) -> str:
    """Return the text encoder's part that a tokenizer's part is for: `text_encoder_2` for `tokenizer_2`."""
    return tokenizer.replace("tokenizer", "text_encoder")
