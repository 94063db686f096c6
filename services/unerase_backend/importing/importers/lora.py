"""`--as lora`: a LoRA of PEFT, kohya's scripts or diffusers' attention processors, or an adapter of LECO or SPM.

Each factor gets its alpha beside it, whatever file the program kept it in. With the model's architecture, layers are
checked and get their names with dots.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue import lora
from unerase_backend.catalogue.layouts import LECO_SPM
from unerase_backend.importing.registry import Imported, Source, importer
from unerase_backend.runtime.errors import UnsafeModelError

_OWN = "base_model.model."
_SUFFIXES = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}
_FLAT = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}


@importer("lora")
def import_lora(source: Source) -> Imported:
    """Return the LoRA's factors and alphas."""
    tensors = {_with_part(name): tensor for name, tensor in source.tensors.items()}
    parsed = lora.parse_all(tensors)
    by_peft = any(name.startswith(_OWN) for name in source.tensors)
    strength = lora.strengths(source.metadata)
    with_alpha = {(each.part, lora.flat(each.module)) for each in parsed.values() if each.role == "alpha"}
    found: dict[str, Tensor] = {}
    for key, each in parsed.items():
        name = _layer(source, each)
        found[_key(each, name, each.role)] = tensors[key]
        if each.role == "down" and (each.part, lora.flat(each.module)) not in with_alpha:
            rank = tensors[key].shape[0] if tensors[key].dim() else 1
            share = _own_strength(source, each, rank) if by_peft else strength(each, rank)
            if share != 1.0:
                found[_key(each, name, "alpha")] = torch.tensor(share * rank)
    _check_shapes(source, parsed, tensors)
    notes = []
    if source.layout == LECO_SPM:
        notes.append("SPM weakens its adapters for prompts far from the concept; merged, they are the same for all")
    return Imported({"lora": found}, notes)


def _with_part(name: str) -> str:
    """Return a name as PEFT alone stores it with the part that it belongs to."""
    if not name.startswith(_OWN):
        return name
    module = name.removeprefix(_OWN)
    return f"text_encoder.{module}" if re.match(r"(text_model\.)?encoder\.layers\.", module) else f"unet.{module}"


def _own_strength(source: Source, key: lora.LoraKey, rank: int) -> float:
    given: Mapping[str, Any] = source.beside
    if not given:
        message = "PEFT keeps this LoRA's alpha in adapter_config.json, which is not beside the file"
        raise UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")
    patterns = given.get("alpha_pattern") or {}
    alpha: Any = given.get("lora_alpha")
    if isinstance(patterns, dict):
        alpha = next((a for end, a in patterns.items() if f".{key.module}".endswith(f".{end}")), alpha)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or not rank:
        raise UnsafeModelError("adapter_config.json gives no lora_alpha", reason="WEIGHTS_INCOMPLETE")
    if given.get("use_dora") or given.get("fan_in_fan_out"):
        raise UnsafeModelError("adapter_config.json asks for DoRA or transposed layers", reason="LORA_UNSUPPORTED")
    return float(alpha) / (math.sqrt(rank) if given.get("use_rslora") else rank)


def _layer(source: Source, key: lora.LoraKey) -> str:
    """Return the layer's name with dots, or as the file has it where the architecture is not known."""
    shapes = source.architecture.shapes(key.part)
    if shapes is None:
        return key.module
    names = {lora.flat(name.removesuffix(".weight")): name for name in shapes if name.endswith(".weight")}
    if lora.flat(key.module) not in names:
        message = f"the {key.part} of the model has no layer {key.module!r}, which the LoRA changes"
        raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
    return names[lora.flat(key.module)].removesuffix(".weight")


def _key(key: lora.LoraKey, layer: str, role: str) -> str:
    if "." in layer:
        return f"{key.part}.{layer}.{_SUFFIXES[role]}"
    return f"lora_{'te' if key.part == 'text_encoder' else 'unet'}_{layer}.{_FLAT[role]}"


def _check_shapes(source: Source, parsed: Mapping[str, lora.LoraKey], tensors: Mapping[str, Tensor]) -> None:
    for key, each in parsed.items():
        shapes = source.architecture.shapes(each.part)
        if shapes is None or each.role == "alpha":
            continue
        shape, given = shapes[f"{_layer(source, each)}.weight"], tensors[key].shape
        fits = given[1:].numel() == shape[1:].numel() if each.role == "down" else given[:1] == shape[:1]
        if len(given) < 2 or not fits:
            message = f"{key!r} has the shape {tuple(given)}, and its layer in the model {tuple(shape)}"
            raise UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")
