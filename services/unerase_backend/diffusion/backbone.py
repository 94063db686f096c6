"""Backbones: how a family of models reads prompts, predicts, and holds pictures as latents.

A backbone is a class of `diffusion/backbones/`, one file a family, registered by `backbone`. It says which pipeline of
diffusers it is and which parts that has, and makes of the loaded parts:

1. `encode`: what the denoiser reads of prompts, by one or several text encoders (`text_reader`), as named tensors;
2. `predict`: the denoiser's output for latents at times of its path under encodings;
3. `latent_shape`, `to_latents` and `to_autoencoder`: the latents of pictures of some size, and the autoencoder's.

Path and prediction come from the scheduler's configuration (`schedule`). Everything above asks the backbone, and names
no class of diffusers. `encode` and `predict` allow gradients.

Prompts of several text encoders: encoders with the same ids for the same words share a vocabulary, and token ids are of
the first encoder's. An encoder with a vocabulary of its own reads the text that ids write. A learned word has a row for
each of its tokens, which is the rows of all text encoders side by side, in the order of `readers`; what is searched as
token ids has only those of the encoders that share the first one's vocabulary.

Modules of backbones import torch only where they compute: the catalogue reads their parts in processes without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from unerase_backend.catalogue.backbone_kinds import (
    BACKBONES,
    Configs,
    Part,
    Role,
    denoiser_of,
    of_role,
    tokenizer_of,
)
from unerase_backend.catalogue.model_families import Guidance
from unerase_backend.runtime.components import RegistrationError

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.catalogue.findings import Findings
    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.flow_levels import PipelineCall
    from unerase_backend.diffusion.prompt import Prompt
    from unerase_backend.diffusion.text_reader import TextReader

Own = TypeVar("Own", bound="Backbone")
AnyBackbone = TypeVar("AnyBackbone", bound="type[Backbone]")


class Backbone:
    """The loaded parts of one model, and how its family uses them."""

    family: ClassVar[str] = ""
    title: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    parts: ClassVar[Mapping[str, Part]]
    default_sequence_length: ClassVar[int] = 0
    """Tokens of a prompt in a text encoder without a length of its own, such as T5, as the pipeline has it."""
    lower_case: ClassVar[bool] = False
    """Whether such an encoder reads prompts in lower case, as `text_reader.lowered` has them."""

    def __init__(
        self,
        modules: Mapping[str, Any],
        tokenizers: Mapping[str, Any],
        index: Mapping[str, Any],
        sequence_length: int | None = None,
    ) -> None:
        """Take the modules and tokenizers of a pipeline by their parts, and what its model_index.json says.

        `sequence_length` replaces that of the family.
        """
        self.modules = dict(modules)
        self.index = index
        self.sequence_length = self.sequence_length_of(index) if sequence_length is None else sequence_length
        self.readers: tuple[TextReader, ...] = tuple(self.make_readers(tokenizers))
        """The text encoders, the one whose token ids are searched first."""

    @classmethod
    def index_problem(cls, index: Mapping[str, Any]) -> str:
        """Return why a folder with this model_index.json cannot be audited; empty if it can."""
        del index
        return ""

    @classmethod
    def sequence_length_of(cls, index: Mapping[str, Any]) -> int:
        """Return the tokens of a prompt in a text encoder without a length of its own, by model_index.json."""
        return cls.default_sequence_length

    @classmethod
    def index_settings(cls, index: Mapping[str, Any]) -> Mapping[str, object]:
        """Return what model_index.json sets beside the parts, where that is not as the family mostly has it.

        It becomes part of the model's digest, by which results are kept.
        """
        return {}

    @classmethod
    def find_misfits(cls, configs: Configs, resolution: int, findings: Findings) -> None:
        """Find what keeps the parts of a folder from working together, by their configurations alone.

        Args:
            configs: The configurations of the parts and of `scheduler`, as far as they could be read.
            resolution: Pixels of a picture's side.
            findings: Takes what is found.
        """

    @classmethod
    def build(cls, part: str, config: Mapping[str, Any]) -> Any:
        """Return a part's module as its configuration says, on the device of the context."""
        from unerase_backend.diffusion.libraries import library_class

        known = cls.parts[part]
        kind = library_class(known.library, known.kind)
        return kind.from_config(config) if known.library == "diffusers" else kind(kind.config_class.from_dict(config))

    def make_readers(self, tokenizers: Mapping[str, Any]) -> Sequence[TextReader]:
        """Return the text encoders, the one whose token ids are searched first."""
        raise NotImplementedError

    def clip_reader(self, tokenizers: Mapping[str, Any], part: str) -> TextReader:
        """Return a CLIP text encoder with the tokenizer of its number."""
        from unerase_backend.diffusion.text_reader import TextReader, clip_framing

        tokenizer = tokenizers[tokenizer_of(part)]
        return TextReader(part, self.modules[part], tokenizer, clip_framing(tokenizer))

    def read(self, place: int, prompts: Sequence[Prompt], learned: Sequence[Tensor | None], **options: Any) -> Any:
        """Return what one text encoder says of prompts, in one call; see `TextReader.read`."""
        frames = [prompt.frames[place] for prompt in prompts]
        return self.readers[place].read(frames, self.of_reader(place, learned), **options)

    def encode(self, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
        """Return what the denoiser reads of prompts, in one call of each text encoder.

        `learned` holds the embedding of each prompt's learned word, (tokens, width), or None; gradients reach it.
        """
        raise NotImplementedError

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the output of a denoiser of this family, of the latents' shape and in its number type.

        Args:
            denoiser: The model's own denoiser, or a trained copy.
            latents: (rows, channels, height, width), in the denoiser's number type.
            times: The time of each row, (rows,), as the schedule gives it.
            encoding: Of `rows` prompts.
        """
        raise NotImplementedError

    @property
    def guidance(self) -> Guidance:
        """How the denoiser is led to a prompt.

        Where the scale is embedded, `encode` gives the one that training errors are measured at
        (`encoding.GUIDANCE`), and the sampler each trajectory's own.
        """
        return Guidance.CLASSIFIER_FREE

    @property
    def classifier_free(self) -> bool:
        """Whether guidance weighs several rows of a trajectory; without, it has one."""
        return self.guidance is Guidance.CLASSIFIER_FREE

    @property
    def shrinking(self) -> int:
        """Pixels of a picture on a side of one cell of latents."""
        factor: int = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        return factor

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of pictures with `resolution` pixels a side."""
        side = resolution // self.shrinking
        return (self.autoencoder.config.latent_channels, side, side)

    def pipeline_call(self, latents: tuple[int, int, int]) -> PipelineCall:
        """Return how the family's pipeline calls the scheduler of a flow, for the shape of latents."""
        from unerase_backend.diffusion.flow_levels import PipelineCall

        del latents
        return PipelineCall()

    @property
    def latent_scale(self) -> tuple[float, ...]:
        """The factor of the denoiser's latents, and what is taken from the autoencoder's before, unless it is 0."""
        config = self.autoencoder.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return (float(config.scaling_factor), float(shift)) if shift else (float(config.scaling_factor),)

    def to_latents(self, encoded: Tensor) -> Tensor:
        """Return the denoiser's latents for the mode of the autoencoder's distribution."""
        factor, *shift = self.latent_scale
        return (encoded - shift[0]) * factor if shift else encoded * factor

    def to_autoencoder(self, latents: Tensor) -> Tensor:
        """Return what the autoencoder decodes for the denoiser's latents."""
        factor, *shift = self.latent_scale
        return latents / factor + shift[0] if shift else latents / factor

    def to_distribution(self, values: Tensor) -> Tensor:
        """Return the mode of the autoencoder's distribution for pictures from -1 to 1, (n, 3, height, width)."""
        mode: Tensor = self.autoencoder.encode(values).latent_dist.mode()
        return mode

    def with_modules(self: Own, modules: Mapping[str, Any]) -> Own:
        """Return the same model with other modules in the place of some."""
        other = copy(self)
        other.modules = {**self.modules, **modules}
        other.readers = tuple(replace(reader, encoder=other.modules[reader.part]) for reader in self.readers)
        other.__dict__.pop("searched", None)
        return other

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return self.modules[denoiser_of(self.parts)]

    @property
    def autoencoder(self) -> Any:
        """The part that turns latents into pictures and back."""
        (name,) = of_role(self.parts, Role.AUTOENCODER)
        return self.modules[name]

    @cached_property
    def searched(self) -> tuple[TextReader, ...]:
        """The text encoders that share the first one's vocabulary, itself included."""
        return tuple(reader for reader in self.readers if reader.same_words(self.readers[0]))

    def token_table(self) -> Tensor:
        """Return the embeddings of the searched vocabulary, (tokens, width), in float32 on the CPU: those of the text
        encoders that share it, side by side.
        """
        import torch

        tables = [reader.embedding.weight.detach().float().cpu() for reader in self.searched]
        return torch.cat(tables, dim=1) if len(tables) > 1 else tables[0]

    def of_reader(self, place: int, learned: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the columns of learned words' embeddings that one of the readers has; None where there are none."""
        start = sum(reader.width for reader in self.readers[:place])
        width = self.readers[place].width
        return [
            None if each is None or each.shape[1] < start + width else each[:, start : start + width]
            for each in learned
        ]


def backbone(family: str) -> Callable[[AnyBackbone], AnyBackbone]:
    """Register the decorated class as the backbone of a family.

    Raises:
        RegistrationError: the family is taken, or the class is no backbone.
    """

    def decorate(kind: AnyBackbone) -> AnyBackbone:
        if not (isinstance(kind, type) and issubclass(kind, Backbone)):
            raise RegistrationError(
                f"the family {family!r} must be a subclass of unerase_backend.diffusion.backbone.Backbone"
            )
        kind.family = family
        BACKBONES.add(family, kind, kind.__module__)
        return kind

    return decorate
