"""Finds the state dict in what a file holds, however it is wrapped, and checks its tensors."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unerase_backend.importing.reading import contents
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

MAX_DEPTH = 8
MAX_TENSORS = 100_000

# Beside the weights of a training run.
_BESIDE = (
    "optimizer",
    "optim",
    "scheduler",
    "lr_scheduler",
    "loops",
    "callbacks",
    "hyper_parameters",
    "args",
    "config",
)
# Wrappers of torch and of averaging that stay in the names of what they wrapped.
_PREFIXES = ("module.", "_orig_mod.", "online_model.")
# Lightning's modules hold a part as `model`; CompVis' and OpenCLIP's names begin with it too.
_MODEL = re.compile(
    r"model\.(?:unet|text_encoder|vae|text_model|conv_in|time_embedding|(?:down|up)_blocks|mid_block)\."
)
# What holds moving averages of the weights beside them.
_AVERAGES = re.compile(r"(?:^|_)ema(?:_|$)")
_OF_AVERAGING = {"initted", "step", "decay", "num_updates", "optimization_step"}
# Custom Diffusion's words, by the name that they stand under.
_WORDS = ("modifier_token", "modifier_vec")
WORD = "modifier_token."
"""What the name of a learned word's rows begins with in a state dict of `state_dict`."""
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_NESTED = ("unet", "text_encoder", "vae")


def state_dict(held: Any, select: str = "") -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in what a file holds, by their names without wrappers, and notes on what was left out.

    `select` names the nested state dict where there are several.

    Raises:
        UnsafeModelError: there are no tensors, or several state dicts and `select` names none of them.
    """
    notes: list[str] = []
    level = contents(held)
    for _ in range(MAX_DEPTH):
        if level is None:
            break
        nested = {str(key): inner for key, value in level.items() if (inner := contents(value)) is not None}
        if select and select in nested:
            level, select = nested[select], ""
            continue
        if "string_to_param" in nested:
            return _flat(level), notes
        weights = {name: each for name, each in nested.items() if not name.startswith(_BESIDE) and _has_tensors(each)}
        own = [str(key) for key, value in level.items() if isinstance(value, Tensor)]
        # A tensor of a layer has a dot in its name; others stand for a step or for a generator's state.
        if not weights or any("." in name for name in own):
            break
        notes += [f"left out {name!r}" for name in sorted(own)]
        if _by_layer(weights):
            break
        if set(weights) <= {*_NESTED, *_WORDS}:
            level = _parts(weights)
            break
        weights = weights if select else _plain(weights, notes)
        if len(weights) > 1:
            names = ", ".join(repr(name) for name in sorted(weights))
            asked = f" and not {select!r}" if select else ""
            raise _refused(f"it holds several sets of weights, {names}{asked}; choose one with --key")
        [(name, level)] = weights.items()
        notes.append(f"took {name!r}")
    if select:
        raise _refused(f"it holds no set of weights {select!r}")
    found = _without_averages(_flat(level or {}), notes)
    if not found:
        raise _refused("it holds no tensors by name, so it is no state dict")
    return found, notes


def _by_layer(weights: Mapping[str, Mapping[Any, Any]]) -> bool:
    """Return whether each set is the state of one layer, as ESD's own code stores the layers that it changed."""
    return any("." in name for name in weights) and all(set(each) <= {"weight", "bias"} for each in weights.values())


def _parts(weights: Mapping[str, Mapping[Any, Any]]) -> dict[str, Any]:
    """Return the parts of a pipeline, and the words beside them, as one level."""
    begin = {part: f"{part}." for part in _NESTED} | dict.fromkeys(_WORDS, WORD)
    return {f"{begin[part]}{_name(key)}": value for part, each in weights.items() for key, value in each.items()}


def _plain(weights: dict[str, Mapping[Any, Any]], notes: list[str]) -> dict[str, Mapping[Any, Any]]:
    """Return the sets that are no moving averages, if there are some."""
    plain = {name: each for name, each in weights.items() if not _AVERAGES.search(name)}
    if not plain or len(plain) == len(weights):
        return weights
    notes += [
        f"left out {name!r}, moving averages of the weights; --key {name} takes them"
        for name in sorted(set(weights) - set(plain))
    ]
    return plain


def _without_averages(found: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return the tensors that are no moving averages; the averages, by the weights' names, if there is nothing else."""
    roots = {root for name in found if _AVERAGES.search(root := name.partition(".")[0]) and root != name}
    if not roots:
        return _without_wrappers(found)
    averages = {name: each for name, each in found.items() if name.partition(".")[0] in roots}
    plain = {name: each for name, each in found.items() if name not in averages and name not in _OF_AVERAGING}
    if plain:
        named = ", ".join(sorted(roots))
        notes.append(f"left out {counted(len(averages), 'tensor')} of moving averages ({named})")
        return _without_wrappers(plain)
    if len(roots) > 1:
        raise _refused(f"it holds several sets of moving averages alone, {', '.join(sorted(roots))}; save one of them")
    [root] = roots
    bare = {name.removeprefix(f"{root}."): each for name, each in averages.items()}
    kept = {name: each for name, each in bare.items() if name not in _OF_AVERAGING}
    if kept and not any("." in name for name in kept):
        message = f"it holds moving averages alone ({root}), by names without dots, which do not say their layers"
        raise _refused(f"{message}; copy them to the model where they were made, and save its state_dict()")
    notes.append(f"took moving averages ({root}), since the file has no other weights")
    return _without_wrappers(kept)


def _has_tensors(level: Mapping[Any, Any], depth: int = 0) -> bool:
    # Bytes are the state of a generator of random numbers, single numbers that of a scaler.
    return any(
        (isinstance(value, Tensor) and value.dtype != torch.uint8 and value.dim() > 0)
        or (depth < 2 and (inner := contents(value)) is not None and _has_tensors(inner, depth + 1))
        for value in level.values()
    )


def _flat(level: Mapping[Any, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    pending: list[tuple[str, Mapping[Any, Any], int]] = [("", level, 0)]
    seen = 0
    while pending:
        prefix, each, depth = pending.pop()
        seen += len(each)
        for key, value in each.items():
            name = f"{prefix}{_name(key)}"
            inner = contents(value)
            if isinstance(value, Tensor):
                found[name] = value
            elif inner is not None and depth < MAX_DEPTH and not name.startswith(_BESIDE):
                pending.append((f"{name}.", inner, depth + 1))
            if seen > MAX_TENSORS:
                raise _refused(f"it holds more than {MAX_TENSORS} things")
    return _without_wrappers(found)


def _name(key: object) -> str:
    if not isinstance(key, str) or not key.isprintable() or len(key) > 1000:
        raise _refused("it has a tensor whose name is no text of printable characters")
    return key


def _without_wrappers(found: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in (*_PREFIXES, "model.", *_PREFIXES):
        if prefix == "model." and not any(map(_MODEL.match, found)):
            continue
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def check(tensors: Mapping[str, Tensor], most: int) -> None:
    """Check the tensors that a file is written of; together they may have `most` bytes.

    Raises:
        UnsafeModelError: one is not dense, not of floating point or not finite, or there are too many bytes.
    """
    size = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _refused(f"{name!r} is sparse, quantised or without values")
        if tensor.dtype not in _FLOATING:
            raise _refused(
                f"{name!r} has the type {str(tensor.dtype).removeprefix('torch.')}, which no weight here has"
            )
        size += tensor.numel() * tensor.element_size()
        if size > most:
            raise _refused(f"its tensors unfold to more than {most} bytes, far more than the file has")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.detach()).all()):
            raise UnsafeModelError(f"{name!r} holds NaN or infinity", reason="WEIGHTS_NOT_FINITE")


def plain(tensor: Tensor) -> Tensor:
    """Return a dense copy that shares no memory; double precision becomes single."""
    single = tensor.detach().float() if tensor.dtype == torch.float64 else tensor.detach()
    return single.clone(memory_format=torch.contiguous_format)


def _refused(message: str) -> UnsafeModelError:
    return UnsafeModelError(message, reason="WEIGHTS_UNREADABLE")
