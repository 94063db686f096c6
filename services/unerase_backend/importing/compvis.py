"""Translates the names of CompVis' Stable Diffusion into those of diffusers and transformers.

A UNet there numbers its blocks through: with n = layers_per_block + 1, `input_blocks.i` is layer (i - 1) mod n of the
block (i - 1) div n going down, and `output_blocks.i` is layer i mod n of the block i div n going up. diffusers' own
conversion needs whole UNets; this one also takes some tensors, as ESD publishes them, and equals diffusers' where both
apply (tests/importing/test_compvis.py).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from unerase_backend.importing.architecture import BUFFERS
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

UNET = ("model.diffusion_model.", "diffusion_model.", "")
TEXT_ENCODER = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
VAE = "first_stage_model."
# Of training and sampling there, which the scheduler's configuration says here.
BESIDE = re.compile(
    r"^(?:model_ema\.|betas$|alphas_|sqrt_|log_one_minus|posterior_|logvar$|lvlb_weights$|scale_factor$|loss\."
    r"|optimizer|embedding_manager\.)"
)

_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_PLACE = re.compile(
    r"^(?P<side>input_blocks|output_blocks|middle_block)\.(?P<block>\d+)(?:\.(?P<inner>\d+))?\.(?P<rest>.+)$"
)


def unet_name(name: str, layers_per_block: int) -> str | None:
    """Return diffusers' name of a tensor of a UNet, whose name there has no prefix; None if there is none."""
    owner, _, kind = name.rpartition(".")
    if owner in _OUTSIDE:
        return f"{_OUTSIDE[owner]}.{kind}"
    place = _PLACE.match(name)
    if place is None or (place["side"] != "middle_block" and place["inner"] is None):
        return None
    block, rest = int(place["block"]), place["rest"]
    if place["side"] == "middle_block":
        rest = f"{place['inner']}.{rest}" if place["inner"] else rest
        attention = block == 1
        side, layer = "mid_block", 0 if attention else block // 2
    else:
        down = place["side"] == "input_blocks"
        at, layer = divmod(block - 1 if down else block, layers_per_block + 1)
        side, attention = f"{'down' if down else 'up'}_blocks.{at}", place["inner"] != "0"
        if rest.startswith(("op.", "conv.")):
            return f"{side}.{'down' if down else 'up'}samplers.0.conv.{rest.partition('.')[2]}"
    return f"{side}.attentions.{layer}.{rest}" if attention else _residual(f"{side}.resnets.{layer}", rest)


def _residual(place: str, rest: str) -> str | None:
    owner, _, kind = rest.rpartition(".")
    return f"{place}.{_RESIDUAL[owner]}.{kind}" if owner in _RESIDUAL else None


def unet(tensors: Mapping[str, Tensor], layers_per_block: int) -> dict[str, Tensor]:
    """Return a UNet's tensors, some or all, by diffusers' names.

    Raises:
        UnsafeModelError: a tensor is not known there.
    """
    return _renamed(tensors, lambda name: unet_name(name, layers_per_block))


def text_encoder(tensors: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return a text encoder's tensors by transformers' names; `width` is the encoder's, for OpenCLIP's joint matrices.

    Raises:
        UnsafeModelError: a tensor is not known there.
    """
    plain = {name.removeprefix(TEXT_ENCODER): each for name, each in tensors.items() if name.startswith(TEXT_ENCODER)}
    if not plain:
        from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

        given = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
        plain = convert_open_clip_checkpoint(given, dict(tensors), prefix=OPEN_CLIP)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in plain.items()}
    return {name: each for name, each in bare.items() if not name.endswith((*BUFFERS, "text_projection.weight"))}


def vae(tensors: Mapping[str, Tensor], configuration: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return an autoencoder's tensors by diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    found: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(tensors), dict(configuration))
    return found


def without_prefix(tensors: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors under the first prefix that some name has, without it."""
    for prefix in prefixes:
        if found := {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}:
            return found
    return {}


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        new = rename(name)
        if new is None:
            raise UnsafeModelError(f"no UNet in CompVis' layout has {name!r}", reason="WEIGHTS_UNKNOWN_TENSOR")
        found[new] = tensor
    return found


def left_out(strangers: Sequence[str]) -> list[str]:
    """Return a note on the tensors that are of no part; none if there are none."""
    if not strangers:
        return []
    verb = "is" if len(strangers) == 1 else "are"
    return [f"left out {counted(len(strangers), 'tensor')} that {verb} of no part, {strangers[0]!r} among them"]
