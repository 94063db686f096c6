"""What a LoRA file changes, from the names of its tensors; nothing is computed here.

A LoRA gives a layer with the weight W two factors, `down` (r, in) and `up` (out, r), and often an alpha:

    W + scale * alpha / r * up @ down

Without an alpha it is r, so that the factor is 1. These layouts are read; MODULE is a layer's name in diffusers or
transformers, and `transformer` (`lora_transformer`), `text_encoder` (`lora_te`, `lora_te1`), `text_encoder_2`
(`lora_te2`) and `text_encoder_3` (`lora_te3`) stand where `unet` stands:

| program | names |
| --- | --- |
| PEFT, through diffusers | `unet.MODULE.lora_A.weight`, `unet.MODULE.lora_B.weight`; the alpha in the metadata |
| kohya's scripts, LECO, SPM | `lora_unet_MODULE.lora_down.weight`, `.lora_up.weight`, `.alpha`; dots are underscores |
| diffusers 0.12 to 0.20 | `[unet.]BLOCK.processor.to_q_lora.down.weight`, `.up.weight` |
| diffusers from 0.21 | `unet.MODULE.lora.down.weight`; of text encoders `MODULE.lora_linear_layer.down.weight` |

For Stable Diffusion XL, kohya's scripts count a UNet's blocks as Stability's own code does (`unet_blocks`).
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from unerase_backend.catalogue import unet_blocks
from unerase_backend.catalogue.part_names import DENOISERS, REPLACEABLE, TEXT_ENCODERS
from unerase_backend.runtime.errors import UnsafeModelError

Role = Literal["down", "up", "alpha"]

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers stores PEFT's configuration, as JSON, in a file's metadata."""

_ROLE = re.compile(
    r"""(?: \.lora_(?P<peft>[AB]) (?:\.(?!weight$)[\w-]+)? \.weight
        | \.lora_(?P<kohya>down|up)\.weight
        | (?:[._]lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight
        | (?:[._]lora|\.lora_linear_layer)?\.(?P<alpha>alpha) )$""",
    re.VERBOSE,
)
_PREFIXES = {
    **{f"lora_{part}_": part for part in DENOISERS},
    "lora_te_": TEXT_ENCODERS[0],
    **{f"lora_te{number}_": part for number, part in enumerate(TEXT_ENCODERS, 1)},
    **{f"{part}.": part for part in REPLACEABLE},
}
# What the attention processors of denoisers and of text encoders called their layers.
_OF_DENOISERS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_OF_TEXT_ENCODERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OTHERS = {
    r"dora_scale|magnitude_vector": "DoRA, which also scales whole columns",
    r"\.lora_mid\.": "a LoCon with a third factor",
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.b?oft_": "OFT",
    r"\.diff(_b)?$": "a difference in full, beside a LoRA",
    r"\.[wb]_norm$": "LyCORIS' change of a normalisation in full, beside a LoRA",
    r"\.on_input$": "IA3",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.lora_[AB]\.bias$|\.lora_embedding_": "a LoRA with changed biases or embeddings",
    r"^lora_unet_(?:joint|double|single)_blocks_|^diffusion_model\.": "a LoRA of a diffusion transformer in its "
    "authors' own names; store it in diffusers' layout (load_lora_weights, save_lora_weights)",
    r"^(?:(?:unet|transformer|text_encoder(?:_[23])?)\.)?base_model\.model\.": "a LoRA as PEFT alone stores it, whose "
    "alpha is in another file; import it",
    r"\.scalar$": "a LoCon of LyCORIS with a further factor; import it",
}


@dataclass(frozen=True)
class LoraKey:
    """What one tensor of a LoRA is."""

    part: str
    module: str
    """The layer's name as the file has it: with dots, or with underscores in their place."""
    role: Role


def flat(module: str) -> str:
    """Return a layer's name with underscores for dots, by which the names of all layouts agree."""
    return module.replace(".", "_").removeprefix("text_model_")


def parse(key: str) -> LoraKey | None:
    """Return what the tensor `key` is; None if it is not one of a LoRA that can be merged."""
    role = _ROLE.search(key)
    if role is None or another_kind([key]):
        return None
    named = role["peft"] or role["kohya"] or role["old"] or role["alpha"]
    kind: dict[str, Role] = {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha"}
    module = key[: role.start()]
    part = "unet"
    for prefix, each in _PREFIXES.items():
        if module.startswith(prefix):
            module, part = module.removeprefix(prefix), each
            break
    else:
        # Files of only a UNet's attention processors name no part.
        if ".processor." not in module:
            return None
    owner, _, layer = module.rpartition(".")
    layers = _OF_TEXT_ENCODERS if part in TEXT_ENCODERS else _OF_DENOISERS
    if role.group().startswith("_lora") and layer in layers:
        module = f"{owner.removesuffix('.processor')}.{layers[layer]}"
    return LoraKey(part, module, kind[named])


def another_kind(keys: Iterable[str]) -> str:
    """Return which kind of adapter, one that is not merged here, keys belong to; empty for none."""
    return next((kind for key in keys for pattern, kind in _OTHERS.items() if re.search(pattern, key)), "")


def parse_all(keys: Iterable[str]) -> dict[str, LoraKey]:
    """Return what each tensor of a LoRA file is.

    Raises:
        UnsafeModelError: there is none, one is not known here, two are the same, or a layer lacks one of its factors.
    """
    keys = sorted(keys)
    parsed = {key: each for key in keys if (each := parse(key))}
    if unknown := [key for key in keys if key not in parsed]:
        kind = another_kind(unknown)
        what = f"it is {kind}" if kind else "it is in no layout of a LoRA that is known here"
        message = f"the LoRA has {len(unknown)} tensors such as {unknown[0]!r}: {what}"
        raise UnsafeModelError(message, reason="LORA_UNSUPPORTED" if kind else "WEIGHTS_UNKNOWN_TENSOR")
    roles: dict[tuple[str, str], dict[Role, str]] = {}
    for key, each in parsed.items():
        found = roles.setdefault((each.part, flat(each.module)), {})
        if each.role in found:
            message = f"the LoRA has {found[each.role]!r} and {key!r} for the same layer"
            raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
        found[each.role] = key
    for found in roles.values():
        for role in ("down", "up"):
            if role not in found:
                message = f"the LoRA has {next(iter(found.values()))!r} without the layer's factor {role!r}"
                raise UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")
    if not roles:
        raise UnsafeModelError("the LoRA is empty", reason="WEIGHTS_INCOMPLETE")
    return parsed


def read_keys(path: Path) -> tuple[dict[str, LoraKey], dict[str, str]]:
    """Return what each tensor of a safetensors file is, and the file's metadata.

    Raises:
        UnsafeModelError: it cannot be read; otherwise as `parse_all`.
    """
    try:
        with safe_open(path, framework="np") as file:
            keys, metadata = list(file.keys()), dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise UnsafeModelError("the LoRA cannot be read as safetensors", reason="WEIGHTS_UNREADABLE") from error
    return parse_all(keys), metadata


def parts_of(path: Path) -> list[str]:
    """Return the parts of a model that a LoRA file changes, the denoiser first; errors as in `read_keys`."""
    parsed, _ = read_keys(path)
    return [part for part in REPLACEABLE if any(each.part == part for each in parsed.values())]


def layers_of(tensors: Iterable[str]) -> dict[str, str]:
    """Return the layers of a module by the names that LoRAs give them, without dots; `tensors` are its weights."""
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    return {flat(other): name for name, other in unet_blocks.counted(names).items()} | {flat(n): n for n in names}


def strengths(metadata: Mapping[str, str]) -> Callable[[LoraKey, int], float]:
    """Return alpha / r by a layer and its rank, as PEFT's configuration in the metadata has it; 1 without one.

    Raises:
        UnsafeModelError: the configuration cannot be read; otherwise as `configured_strength`.
    """
    where = f"the LoRA's metadata {METADATA_KEY!r}"
    given = configuration(metadata.get(METADATA_KEY, "{}"), where)

    def strength(key: LoraKey, rank: int) -> float:
        start = f"{key.part}."
        own = {name.removeprefix(start): value for name, value in given.items() if name.startswith(start)}
        return configured_strength({"lora_alpha": rank} | own, key, rank, where)

    return strength


def configuration(content: str, where: str) -> dict[str, Any]:
    """Return PEFT's configuration from JSON; `where` says where it stands.

    Raises:
        UnsafeModelError: it is not a JSON object.
    """
    try:
        return {str(name): value for name, value in json.loads(content).items()}
    except (ValueError, AttributeError, RecursionError):
        raise _bad_configuration(where, "is not a JSON object") from None


def configured_strength(given: Mapping[str, Any], key: LoraKey, rank: int, where: str) -> float:
    """Return alpha / r of a layer, as PEFT's configuration of its part has it.

    Raises:
        UnsafeModelError: the configuration has no alpha, asks for DoRA, or names layers by patterns.
    """
    if given.get("use_dora") or given.get("fan_in_fan_out"):
        message = f"{where} asks for DoRA or transposed layers"
        raise UnsafeModelError(message, reason="LORA_UNSUPPORTED")
    patterns: Any = given.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(not re.fullmatch(r"[\w.]+", name) for name in patterns):
        raise _bad_configuration(where, "names layers by patterns")
    alpha: Any = given.get("lora_alpha")
    alpha = next((a for name, a in patterns.items() if f".{key.module}".endswith(f".{name}")), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _bad_configuration(where, "has an alpha that is no number")
    return float(alpha) / (math.sqrt(rank) if given.get("use_rslora") else rank)


def _bad_configuration(where: str, problem: str) -> UnsafeModelError:
    return UnsafeModelError(f"{where} {problem}", reason="WEIGHTS_UNREADABLE")
