"""Loads a model of the catalogue: a pipeline folder in diffusers' layout, with replaced weights and changes.

Only safetensors are loaded, nothing comes from the network, and no code of the folder runs. A replacing file may hold
all or some tensors of the UNet or text encoder, and nothing else. A LoRA is merged in float32, and the result rounded
once (`adapters.py`). Learned words are added last (`embeddings.py`).

A request may change the model further, in order. Tensors of an artefact replace the UNet's, or every weight w of UNet
and text encoder moves by a share s towards the weight v of another model,

    w <- w + s (v - w)

in float32, whatever the dtype of the result. Share 0 gives w and share 1 gives v, bit for bit; where w = v, every share
gives w. VAE, tokenizer and learned words are always the model's own, and so are betas and prediction. A change may step
the model by the schedule of another.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.embeddings import expanded
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.stepping import schedule_of
from unerase_backend.diffusion import adapters, embeddings, weights
from unerase_backend.diffusion.model_check import Prepared, prepare
from unerase_backend.diffusion.prediction import Prediction
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A text-to-image latent diffusion model, in evaluation mode."""

    name: str
    """Catalogue name."""
    digest: str
    """SHA-256 over all files of the model, as in the catalogue's description."""
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    schedule: Schedule
    scaling_factor: float
    """The UNet's latents are the VAE's latents times this factor."""
    resolution: int
    """Side of the pictures in pixels."""
    device: torch.device
    dtype: torch.dtype
    """Of the UNet and the text encoder; the VAE computes in float32."""
    words: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The token ids of each learned word's rows, by the first of them."""

    @property
    def prediction(self) -> Prediction:
        """What the UNet predicts."""
        return self.schedule.prediction

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        side = self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.unet.config.in_channels, side, side)

    @property
    def prompt_length(self) -> int:
        """Tokens of an encoded prompt, including start, end and padding."""
        length: int = self.tokenizer.model_max_length
        return length

    def tokens_of(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end; a learned word stands for all its rows."""
        return expanded(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids, self.words)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text that token ids write."""
        return embeddings.decode(self.tokenizer, ids, self.words)

    @cached_property
    def architecture(self) -> str:
        """SHA-256 over the UNet's configuration and the kinds and sizes of its modules, without their weights."""
        # The modules do not show everything, for example not the number of heads.
        configured = sorted((key, value) for key, value in self.unet.config.items() if not key.startswith("_"))
        return hashlib.sha256(f"{configured}\n{self.unet!r}".encode()).hexdigest()

    @property
    def prompt_width(self) -> int:
        """Width of the text encoder's output."""
        width: int = self.text_encoder.config.hidden_size
        return width


def load_model(
    catalogue: Catalogue,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    changes: Sequence[ModelChange] = (),
    store: ArtifactStore | None = None,
    digest: str = "",
    trainable: bool = False,
) -> DiffusionModel:
    """Load the model `name`; its weights are frozen unless `trainable`.

    `changes` are made in order, with artefacts of `store`; `digest` is then the digest of the changed model.

    Raises:
        NotFoundError: the catalogue has no such model, or the store no such artefact.
        UnsafeModelError: something is wrong with its files (`model_check`), or a weight is not finite.
        PreconditionError: this kind of model cannot be sampled here, its noise schedule cannot be followed, an
            interpolation names a model of another architecture, or a schedule is named that is none for the model.
        UnavailableError: the model cannot be fetched from the hub.
        DataLossError: an artefact is damaged.
    """
    prepared = _prepared(catalogue, name)
    description = catalogue.describe_model(name)
    schedule = _schedule(catalogue, prepared, changes)
    changes = [change for change in changes if not change.schedule_of]
    # Changes are made in float32, and the result is rounded once.
    in_float32 = bool(changes or prepared.source.loras)
    unet, text_encoder = _changing_parts(prepared, torch.float32 if in_float32 else dtype)
    _change(catalogue, store, changes, unet, text_encoder)
    words = embeddings.add(prepared.source.words, prepared.tokenizer, text_encoder)
    vae = prepared.modules["vae"]
    # Half precision shows in its pictures, and the VAE is a small part of the work.
    weights.fill(vae, prepared.source.tensors["vae"], torch.float32)
    for part, module in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        module.to(device).eval().requires_grad_(trainable)
        if in_float32 and part != "vae":
            module.to(dtype)
        _check_finite(name, part, module)
    for module in (unet, vae):
        # This makes the UNet 15 % faster on a CPU, and does not change the weights.
        module.to(memory_format=torch.channels_last)
    return DiffusionModel(
        name=name,
        digest=digest or description.weights_digest or description.digest,
        tokenizer=prepared.tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        schedule=schedule,
        scaling_factor=vae.config.scaling_factor,
        resolution=description.resolution,
        device=device,
        dtype=dtype,
        words=words,
    )


def _schedule(catalogue: Catalogue, prepared: Prepared, changes: Sequence[ModelChange]) -> Schedule:
    schedule = prepared.schedule
    assert schedule is not None  # noqa: S101 - nothing is wrong with the model
    for change in changes:
        if change.schedule_of:
            schedule = schedule.stepped_by(schedule_of(catalogue, change.schedule_of))
    return schedule


def _change(
    catalogue: Catalogue, store: ArtifactStore | None, changes: Sequence[ModelChange], unet: Any, text_encoder: Any
) -> None:
    """Make the changes in place, in their order."""
    for change in changes:
        match change.WhichOneof("kind"):
            case "unet_digest":
                assert store is not None  # noqa: S101 - a model with artefacts is loaded with their store
                _replace("unet", unet, partial(load, store.get(change.unet_digest)))
            case "interpolation":
                _interpolate(catalogue, (unet, text_encoder), change.interpolation)


def _changing_parts(prepared: Prepared, dtype: torch.dtype) -> tuple[Any, Any]:
    source = prepared.source
    for part in ("unet", "text_encoder"):
        module = prepared.modules[part]
        weights.fill(module, source.tensors[part], dtype)
        for change in source.changes[part]:
            if isinstance(change, Path):
                weights.replace(module, source.replacing[change])
            else:
                adapters.merge(part, module, adapters.read(change.file).get(part, {}), change.scale)
    return prepared.modules["unet"], prepared.modules["text_encoder"]


def _prepared(catalogue: Catalogue, name: str) -> Prepared:
    findings = Findings(name)
    prepared = prepare(catalogue, name, findings, fetch=True)
    findings.conclude().raise_any()
    assert prepared is not None  # noqa: S101 - it was fetched, and nothing is wrong with it
    return prepared


def _replace(part: str, module: Any, read: Callable[[], dict[str, Tensor]]) -> None:
    state = module.state_dict()
    try:
        tensors = read()
    except (OSError, SafetensorError, ValueError) as error:
        message = f"the file that replaces the {part} cannot be read"
        raise UnsafeModelError(message, reason="WEIGHTS_UNREADABLE") from error
    if not tensors:
        raise UnsafeModelError(f"the file that replaces the {part} is empty", reason="WEIGHTS_INCOMPLETE")
    for key, tensor in tensors.items():
        if key not in state:
            raise UnsafeModelError(f"the {part} has no tensor {key!r}", reason="WEIGHTS_UNKNOWN_TENSOR")
        if tensor.shape != state[key].shape:
            message = f"{key!r} of the {part} has the shape {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
            raise UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")
        if tensor.is_floating_point() != state[key].is_floating_point():
            raise UnsafeModelError(f"{key!r} of the {part} must be {state[key].dtype}", reason="WEIGHTS_WRONG_TYPE")
    with torch.no_grad():
        for key, tensor in tensors.items():
            state[key].copy_(tensor)


def _interpolate(catalogue: Catalogue, modules: Sequence[Any], interpolation: Interpolation) -> None:
    others = _changing_parts(_prepared(catalogue, interpolation.model), torch.float32)
    for module, other in zip(modules, others, strict=True):
        state, towards = module.state_dict(), other.state_dict()
        if {key: tensor.shape for key, tensor in state.items()} != {key: each.shape for key, each in towards.items()}:
            message = f"the model cannot be interpolated towards {interpolation.model!r}, whose architecture differs"
            raise PreconditionError(message, reason="MODELS_DIFFER")
        with torch.no_grad():
            for key, tensor in state.items():
                tensor.copy_(_between(tensor, towards[key], interpolation.share))


def _between(tensor: Tensor, other: Tensor, share: float) -> Tensor:
    # Arithmetic would turn -0 into 0, and integers cannot be interpolated.
    if share == 0 or not tensor.is_floating_point():
        return tensor
    return other if share == 1 else torch.lerp(tensor, other, share)


def _check_finite(name: str, part: str, module: Any) -> None:
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            message = f"the model {name!r} cannot be loaded: {key!r} of the {part} holds NaN or infinity"
            metadata = {"model": name, "part": part}
            raise UnsafeModelError(message, reason="WEIGHTS_NOT_FINITE", metadata=metadata)
