"""Recognises what a file of weights holds, and in whose layout, from the names of its tensors.

The server reads UNets, text encoders and autoencoders as diffusers and transformers store them. Every other layout that
erased models are published in is named, with the command that imports it.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["unet", "vae", "text_encoder"]
ImportKind = Literal["model", "unet", "text-encoder", "lora", "embedding"]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
"""Endings of files that torch pickles; they can carry code."""
UNSAFE = (*PICKLES, ".msgpack", ".h5", ".onnx")
"""Endings of files of weights that are never loaded."""


@dataclass(frozen=True)
class Layout:
    """What a file of weights holds, and how."""

    key: str
    """Machine-readable, as in `PEFT_LORA`."""
    title: str
    """As in "a LoRA in PEFT's layout"."""
    part: Part | None = None
    """The part of a pipeline that the server reads it as; None if the server does not read it."""
    import_as: ImportKind | None = None
    """The kind by which `unerase import` takes it; None if that does not take it either."""


UNET = Layout("UNET", "a UNet in diffusers' layout", "unet", "unet")
VAE = Layout("VAE", "an autoencoder in diffusers' layout", "vae")
TEXT_ENCODER = Layout("TEXT_ENCODER", "a CLIP text encoder in transformers' layout", "text_encoder", "text-encoder")
COMPVIS_MODEL = Layout("COMPVIS_MODEL", "a whole Stable Diffusion in CompVis' layout", None, "model")
COMPVIS_UNET = Layout("COMPVIS_UNET", "a UNet in CompVis' layout", None, "unet")
COMPVIS_TEXT_ENCODER = Layout("COMPVIS_TEXT_ENCODER", "a text encoder in CompVis' layout", None, "text-encoder")
COMPVIS_VAE = Layout("COMPVIS_VAE", "an autoencoder in CompVis' layout")
PIPELINE = Layout("PIPELINE", "several parts of a pipeline in one file", None, "model")
PEFT_LORA = Layout("PEFT_LORA", "a LoRA in PEFT's layout", None, "lora")
KOHYA_LORA = Layout("KOHYA_LORA", "a LoRA in kohya's layout", None, "lora")
LECO_SPM = Layout("LECO_SPM", "an adapter of LECO or SPM, in kohya's layout", None, "lora")
PROCESSOR_LORA = Layout("PROCESSOR_LORA", "a LoRA as diffusers' attention processors", None, "lora")
EMBEDDING = Layout("EMBEDDING", "an embedding of textual inversion", None, "embedding")
LYCORIS = Layout("LYCORIS", "an adapter of LyCORIS (LoHa, LoKr, OFT, DoRA, IA3, GLoRA or differences in full)")
CUSTOM_DIFFUSION = Layout("CUSTOM_DIFFUSION", "attention processors of Custom Diffusion")
CONTROL = Layout("CONTROL", "a ControlNet or another adapter that takes pictures")
CLIP = Layout("CLIP", "a whole CLIP model")
SDXL = Layout("SDXL", "a Stable Diffusion XL in CompVis' layout")
TRANSFORMER = Layout("TRANSFORMER", "a diffusion transformer, as Stable Diffusion 3, FLUX, PixArt and Sana have")
UNKNOWN = Layout("UNKNOWN", "tensors of no layout that is known here")

# Wrappers of torch that stay in the names of what they wrapped.
_WRAPPERS = re.compile(r"^((?:unet|vae|text_encoder)\.)?(?:module\.|_orig_mod\.)+")
_UNET_ROOTS = r"(?:conv_in|conv_out|conv_norm_out|time_embedding|down_blocks|mid_block|up_blocks)\."
_COMPVIS_UNET = r"(?:model\.)?(?:diffusion_model\.)?(?:input_blocks|middle_block|output_blocks|time_embed|out)\.\d"

_Rule = tuple[Layout, Callable[[frozenset[str], Mapping[str, str]], bool]]


def recognise(names: Iterable[str], metadata: Mapping[str, str] | None = None) -> Layout:
    """Return the layout of a file with tensors of these names and, if it is a safetensors file, this metadata."""
    bare = frozenset(_WRAPPERS.sub(r"\1", name) for name in names)
    given = metadata or {}
    return next((layout for layout, holds in _RULES if bare and holds(bare, given)), UNKNOWN)


def import_command(file: str, kind: ImportKind | None = None) -> str:
    """Return the command that imports a file by its name; without a kind the reader has to choose one."""
    return f"unerase import {shlex.quote(file)} --as {kind or 'KIND'} --out FOLDER"


def _some(pattern: str) -> Callable[[frozenset[str], Mapping[str, str]], bool]:
    searched = re.compile(pattern)
    return lambda names, _: any(searched.search(name) for name in names)


def _leco_or_spm(names: frozenset[str], metadata: Mapping[str, str]) -> bool:
    # Both write kohya's names; their programs store the prompts and the configuration of the erasure beside them.
    kohya = any(key.startswith("ss_") for key in metadata)
    return "prompts" in metadata and not kohya and _some(_KOHYA)(names, metadata)


def _embedding(names: frozenset[str], _: Mapping[str, str]) -> bool:
    known = {"emb_params", "clip_l", "clip_g", "string_to_param", "string_to_token"}
    return not names.isdisjoint(known) or all("." not in name or name.startswith("<") for name in names)


def _whole_compvis(names: frozenset[str], _: Mapping[str, str]) -> bool:
    roots = {name.partition(".")[0] for name in names}
    return len(roots & {"model", "first_stage_model", "cond_stage_model"}) > 1


def _pipeline(names: frozenset[str], _: Mapping[str, str]) -> bool:
    return len({name.partition(".")[0] for name in names} & {"unet", "vae", "text_encoder"}) > 1


_KOHYA = r"^lora_(?:unet|transformer|te\d?)_.*\.(?:lora_down\.weight|lora_up\.weight|alpha)$"
_RULES: tuple[_Rule, ...] = (
    (LYCORIS, _some(r"\.(?:hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|oft_blocks|oft_diag|dora_scale)$")),
    (LECO_SPM, _leco_or_spm),
    (KOHYA_LORA, _some(_KOHYA)),
    # Beside the factors of a LoRA they are a LoRA's, and refused by their names (`lora.py`).
    (LYCORIS, _some(r"^(?:lora|lycoris)_.*\.(?:diff(?:_b)?|on_input|[wb]_norm|[ab][12]\.weight)$")),
    (PEFT_LORA, _some(r"\.lora_(?:embedding_)?[AB](?:\.[^.]+)?(?:\.weight)?$")),
    (PROCESSOR_LORA, _some(r"(?:_lora|\.lora|\.lora_linear_layer)\.(?:down|up)\.weight$")),
    (CUSTOM_DIFFUSION, _some(r"_custom_diffusion\b")),
    (CONTROL, _some(r"^(?:control_model|controlnet_cond_embedding|controlnet_down_blocks|image_proj|ip_adapter)\.")),
    (SDXL, _some(r"^conditioner\.embedders\.")),
    (
        TRANSFORMER,
        _some(r"^(?:model\.diffusion_model\.|transformer\.)?(?:\w+_)?(?:transformer|double|single|joint)_blocks\."),
    ),
    (COMPVIS_MODEL, _whole_compvis),
    (COMPVIS_UNET, _some(f"^{_COMPVIS_UNET}")),
    (COMPVIS_TEXT_ENCODER, _some(r"^cond_stage_model\.|^(?:model\.)?transformer\.(?:resblocks|text_model)\.")),
    (COMPVIS_VAE, _some(r"^(?:first_stage_model\.)?(?:encoder|decoder)\.(?:down|mid|up)\.")),
    (PIPELINE, _pipeline),
    (UNET, _some(rf"^(?:unet\.)?{_UNET_ROOTS}")),
    (VAE, _some(rf"^(?:vae\.)?(?:(?:encoder|decoder)\.{_UNET_ROOTS}|(?:post_)?quant_conv\.)")),
    (CLIP, _some(r"^(?:visual|vision_model)\.")),
    (TEXT_ENCODER, _some(r"^(?:text_encoder\.)?(?:text_model\.)?(?:embeddings|encoder\.layers|final_layer_norm)\.")),
    (EMBEDDING, _embedding),
)
