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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.backbone_kinds import Parts, Role, of_role, tokenizer_of
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.stepping import schedule_of
from unerase_backend.diffusion import adapters, embeddings, weights
from unerase_backend.diffusion.backbone import Backbone
from unerase_backend.diffusion.memory import LARGE_TEXT_ENCODER
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_check import Prepared, prepare
from unerase_backend.diffusion.outline import cast, weights_of
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.diffusion.text_identity import text_digest
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError


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
    kind = prepared.source.kind
    description = catalogue.describe_model(name)
    schedule = _schedule(catalogue, prepared, changes)
    changes = [change for change in changes if not change.schedule_of]
    # Changes are made in float32, and the result is rounded once.
    in_float32 = bool(changes or prepared.source.loras)
    modules = _changing_parts(prepared, torch.float32 if in_float32 else dtype)
    _change(catalogue, store, changes, modules)
    # Half precision shows in its pictures, and the autoencoder is a small part of the work.
    (autoencoder,) = of_role(kind.parts, Role.AUTOENCODER)
    modules[autoencoder] = prepared.to_fill(autoencoder)
    weights.fill(modules[autoencoder], prepared.source.tensors[autoencoder], torch.float32)
    encoders = [part for part in of_role(kind.parts, Role.TEXT_ENCODER) if part in modules]
    words = {part: _add_words(prepared, part, modules[part]) for part in encoders}
    apart = _apart(kind.parts, modules, device)
    for part, module in modules.items():
        module.to("cpu" if part in apart else device).eval().requires_grad_(trainable)
        if in_float32 and part != autoencoder:
            cast(module, dtype)
        _check_finite(name, part, module)
    for part in of_role(kind.parts, Role.DENOISER, Role.AUTOENCODER):
        # This makes a UNet 15 % faster on a CPU, and does not change the weights.
        modules[part].to(memory_format=torch.channels_last)
    backbone = _backbone(prepared, modules, words)
    backbone.readers = tuple(replace(each, visits=device if each.part in apart else None) for each in backbone.readers)
    return DiffusionModel(
        name=name,
        digest=digest or description.weights_digest or description.digest,
        backbone=backbone,
        schedule=schedule.called(backbone.pipeline_call(backbone.latent_shape(description.resolution))),
        resolution=description.resolution,
        device=device,
        dtype=dtype,
        text_digest=text_digest(prepared.source, description, changes),
    )


def _apart(parts: Parts, modules: Mapping[str, Any], device: torch.device) -> set[str]:
    """Return the text encoders whose weights wait in main memory: large ones beside a device with memory of its own."""
    encoders = of_role(parts, Role.TEXT_ENCODER) if device.type != "cpu" else []
    sizes = {part: sum(each.numel() for each in modules[part].parameters()) for part in encoders if part in modules}
    return {part for part, size in sizes.items() if size >= LARGE_TEXT_ENCODER}


def _add_words(prepared: Prepared, part: str, encoder: Any) -> dict[int, tuple[int, ...]]:
    return embeddings.add(prepared.source.words, part, prepared.tokenizers[tokenizer_of(part)], encoder)


def _backbone(
    prepared: Prepared, modules: Mapping[str, Any], words: Mapping[str, Mapping[int, tuple[int, ...]]]
) -> Backbone:
    kind: Any = prepared.source.kind
    made: Backbone = kind(modules, prepared.tokenizers, prepared.source.index, prepared.source.max_sequence_length)
    made.readers = tuple(reader.with_words(words[reader.part]) for reader in made.readers)
    return made


def _schedule(catalogue: Catalogue, prepared: Prepared, changes: Sequence[ModelChange]) -> Schedule:
    schedule = prepared.schedule
    assert schedule is not None  # noqa: S101 - nothing is wrong with the model
    for change in changes:
        if change.schedule_of:
            schedule = schedule.stepped_by(schedule_of(catalogue, change.schedule_of))
    return schedule


def _change(
    catalogue: Catalogue, store: ArtifactStore | None, changes: Sequence[ModelChange], modules: Mapping[str, Any]
) -> None:
    """Make the changes in place, in their order."""
    denoiser = next(iter(modules))
    for change in changes:
        match change.WhichOneof("kind"):
            case "unet_digest":
                assert store is not None  # noqa: S101 - a model with artefacts is loaded with their store
                _replace(denoiser, modules[denoiser], partial(load, store.get(change.unet_digest)))
            case "interpolation":
                _interpolate(catalogue, modules, change.interpolation)


def _changing_parts(prepared: Prepared, dtype: torch.dtype) -> dict[str, Any]:
    """Return the denoiser and the text encoders with their weights, by part, the denoiser first."""
    source = prepared.source
    parts = [name for name in of_role(source.kind.parts, Role.DENOISER, Role.TEXT_ENCODER) if name in prepared.modules]
    modules = {part: prepared.to_fill(part) for part in parts}
    for part, module in modules.items():
        weights.fill(module, source.tensors[part], dtype)
        for change in source.changes.get(part, ()):
            if isinstance(change, Path):
                weights.replace(module, source.replacing[change])
            else:
                adapters.merge(part, module, adapters.read(change.file).get(part, {}), change.scale)
    return modules


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


def _interpolate(catalogue: Catalogue, modules: Mapping[str, Any], interpolation: Interpolation) -> None:
    others = _changing_parts(_prepared(catalogue, interpolation.model), torch.float32)
    for part, module in modules.items():
        state, towards = weights_of(module), weights_of(others[part]) if part in others else {}
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
