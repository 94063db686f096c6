"""A text-to-image latent diffusion model as it is held in memory."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from unerase_backend.diffusion.backbone import Backbone
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.prediction import Prediction
from unerase_backend.diffusion.schedule import Schedule

_NUMBERS = count()


class Denoiser(Protocol):
    """A denoiser as another library computes it, without gradients (`denoiser_graph`)."""

    timed: Callable[[float], object]
    """Called with the seconds of each call."""
    prepared: Callable[[Encoding], Encoding]
    """See `DiffusionModel.prepared`."""

    def takes(self, latents: Tensor, times: Tensor, encoding: Encoding) -> bool:
        """Return whether it computes rows of these shapes and number types."""
        ...

    def __call__(self, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the denoiser's output for a prepared encoding; see `Backbone.predict`."""
        ...


class Decoder(Protocol):
    """A decoder as another library computes it (`decoder_graph`)."""

    def takes(self, latents: Tensor) -> bool:
        """Return whether it decodes latents of this shape and number type."""
        ...

    def __call__(self, latents: Tensor) -> Tensor:
        """See `DiffusionModel.decode`."""
        ...


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A model in evaluation mode: the parts of its family's backbone, and its schedule."""

    name: str
    """Catalogue name."""
    digest: str
    """SHA-256 over all files of the model, as in the catalogue's description."""
    backbone: Backbone
    schedule: Schedule
    resolution: int
    """Side of the pictures in pixels."""
    device: torch.device
    """Of the denoiser and the autoencoder; a large text encoder may wait in main memory (`text_reader`)."""
    dtype: torch.dtype
    """Of the denoiser and the text encoders; the autoencoder computes in float32."""
    text_digest: str = ""
    """What models with the same text encoders, tokenizers and length of prompts have in common; by default none has."""
    graph: Denoiser | None = None
    """What computes the denoiser in `infer`; the denoiser's own modules if it is None."""
    decoder: Decoder | None = None
    """What computes `decode`; the autoencoder's own modules if it is None."""

    def __post_init__(self) -> None:
        """Tell a model from all others if nothing is said of what it has in common with them."""
        if not self.text_digest:
            object.__setattr__(self, "text_digest", f"{self.digest} {next(_NUMBERS)}")

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return self.backbone.denoiser

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.backbone.autoencoder

    @property
    def text_encoder(self) -> Any:
        """The text encoder whose token ids are searched."""
        return self.backbone.readers[0].encoder

    @property
    def tokenizer(self) -> Any:
        """The tokenizer whose token ids are searched."""
        return self.backbone.readers[0].tokenizer

    @property
    def words(self) -> Mapping[int, tuple[int, ...]]:
        """The token ids of each learned word's rows, by the first of them."""
        return self.backbone.readers[0].words

    @property
    def prediction(self) -> Prediction:
        """What the denoiser predicts."""
        return self.schedule.prediction

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        return self.backbone.latent_shape(self.resolution)

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt as the first text encoder reads it, including start, end and padding."""
        return self.backbone.readers[0].framing.length

    @property
    def prompt_room(self) -> int:
        """Tokens of words that a prompt has room for."""
        return min(reader.framing.room for reader in self.backbone.searched)

    def tokens_of(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end; a learned word stands for all its rows."""
        return self.backbone.readers[0].tokens_of(text)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text that token ids write."""
        return self.backbone.readers[0].text_of(ids)

    def predict(self, latents: Tensor, times: Tensor, encoding: Encoding, denoiser: Any = None) -> Tensor:
        """Return the output of the denoiser, or of a trained copy of it; see `Backbone.predict`."""
        return self.backbone.predict(denoiser or self.denoiser, latents, times, encoding)

    def infer(self, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the output of the denoiser without gradients, which the model's graph computes if it has one."""
        prepared = self.prepared(encoding)
        if self.graph is not None and self.graph.takes(latents, times, prepared):
            return self.graph(latents, times, prepared)
        return self.predict(latents, times, encoding)

    def prepared(self, encoding: Encoding) -> Encoding:
        """Return an encoding with what `infer` would make of it in each call."""
        return encoding if self.graph is None else self.graph.prepared(encoding)

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures from -1 to 1, (n, 3, height, width), for the autoencoder's latents."""
        if self.decoder is not None and self.decoder.takes(latents):
            return self.decoder(latents)
        pictures: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pictures

    @cached_property
    def architecture(self) -> str:
        """`architecture_of` the denoiser."""
        return architecture_of(self.denoiser)


def architecture_of(module: Any) -> str:
    """Return SHA-256 over a module's configuration and the kinds and sizes of its parts, without their weights."""
    # The parts do not show everything, for example not the number of heads.
    configured = sorted((key, value) for key, value in module.config.items() if not key.startswith("_"))
    return hashlib.sha256(f"{configured}\n{module!r}".encode()).hexdigest()
