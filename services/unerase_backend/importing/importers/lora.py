"""`--as lora`: a LoRA of PEFT, kohya's scripts or diffusers' attention processors, or an adapter of LECO or SPM.

Each factor gets its alpha beside it, whatever file the program kept it in. With the model's architecture, layers are
checked and get their names with dots.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unerase_backend.catalogue import lora
from unerase_backend.catalogue.layouts import LECO_SPM
from unerase_backend.catalogue.part_names import REPLACEABLE
from unerase_backend.importing.registry import Imported, Source, importer
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

_PARTS = "|".join(map(re.escape, REPLACEABLE))
_PART = re.compile(rf"^(?:(?P<before>{_PARTS})\.)?base_model\.model\.(?:(?P<behind>{_PARTS})\.)?")
_BESIDE = "adapter_config.json"
_SCALAR = ".scalar"
_SUFFIXES = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}
_FLAT = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}


@importer("lora")
def import_lora(source: Source) -> Imported:
    """Return the LoRA's factors and alphas."""
    notes: list[str] = []
    tensors = _with_scalars({_with_part(name): tensor for name, tensor in source.tensors.items()}, notes)
    parsed = lora.parse_all(tensors)
    _check_ranks(parsed, tensors)
    by_peft = any(map(_PART.match, source.tensors))
    strength = lora.strengths(source.metadata)
    with_alpha = {(each.part, lora.flat(each.module)) for each in parsed.values() if each.role == "alpha"}
    found: dict[str, Tensor] = {}
    for key, each in parsed.items():
        name = _layer(source, each)
        # Some programs store an alpha as a whole number.
        found[_key(each, name, each.role)] = tensors[key].float() if each.role == "alpha" else tensors[key]
        if each.role == "down" and (each.part, lora.flat(each.module)) not in with_alpha:
            rank = tensors[key].shape[0]
            share = _own_strength(source, each, rank) if by_peft else strength(each, rank)
            if share != 1.0:
                found[_key(each, name, "alpha")] = torch.tensor(share * rank)
    _check_shapes(source, parsed, tensors)
    if source.layout == LECO_SPM:
        notes.append("SPM weakens its adapters for prompts far from the concept; merged, they are the same for all")
    return Imported({"lora": found}, notes)


def _with_part(name: str) -> str:
    """Return a name as PEFT alone stores it with the part that it belongs to."""
    own = _PART.match(name)
    if own is None:
        return name
    module = name[own.end() :]
    of_text = re.match(r"(text_model\.)?encoder\.layers\.", module)
    part = own["before"] or own["behind"] or ("text_encoder" if of_text else "unet")
    return f"{part}.{module}"


def _with_scalars(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return LyCORIS' LoCon with each layer's `scalar`, a factor of the whole change, multiplied into `up`.

    Raises:
        UnsafeModelError: one is no number, or stands beside no such factor.
    """
    scalars = {name: each for name, each in tensors.items() if name.endswith(_SCALAR)}
    found = {name: each for name, each in tensors.items() if name not in scalars}
    for name, scalar in scalars.items():
        up = f"{name.removesuffix(_SCALAR)}.lora_up.weight"
        if up not in found or scalar.numel() != 1:
            message = f"{name!r} is no single factor of a layer with {up!r}"
            raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
        found[up] = found[up].float() * scalar.float().reshape(())
    if scalars:
        notes.append(f"multiplied LyCORIS' factors (scalar) into {counted(len(scalars), 'layer')}")
    return found


def _own_strength(source: Source, key: lora.LoraKey, rank: int) -> float:
    if not source.beside:
        message = "PEFT keeps this LoRA's alpha in adapter_config.json, which is not beside the file"
        raise UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")
    return lora.configured_strength(lora.configuration(source.beside, _BESIDE), key, rank, _BESIDE)


def _layer(source: Source, key: lora.LoraKey) -> str:
    """Return the layer's name with dots, or as the file has it where the architecture is not known."""
    shapes = source.architecture.shapes(key.part)
    if shapes is None:
        return key.module
    names = lora.layers_of(shapes)
    if lora.flat(key.module) not in names:
        message = f"the {key.part} of the model has no layer {key.module!r}, which the LoRA changes"
        raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
    return names[lora.flat(key.module)]


def _key(key: lora.LoraKey, layer: str, role: str) -> str:
    if "." in layer:
        return f"{key.part}.{layer}.{_SUFFIXES[role]}"
    return f"lora_{key.part.replace('text_encoder', 'te').replace('_', '')}_{layer}.{_FLAT[role]}"


def _check_ranks(parsed: Mapping[str, lora.LoraKey], tensors: Mapping[str, Tensor]) -> None:
    ups = {(each.part, lora.flat(each.module)): key for key, each in parsed.items() if each.role == "up"}
    for key, each in parsed.items():
        if each.role == "down":
            down, up = tensors[key].shape, tensors[ups[each.part, lora.flat(each.module)]].shape
            if len(down) < 2 or len(up) < 2 or not down[0] or up[1] != down[0]:
                message = f"{key!r} and its other factor have the shapes {tuple(down)} and {tuple(up)}, no common rank"
                raise UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")


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
