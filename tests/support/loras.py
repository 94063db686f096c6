"""LoRAs of the tiny pipeline with random factors, in the layouts of PEFT and kohya."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = {
    f"{ATTENTION}.attn2.to_q": 2,
    f"{ATTENTION}.attn2.to_out.0": 3,
    f"{ATTENTION}.ff.net.0.proj": 1,
    "down_blocks.0.attentions.0.proj_in": 2,
    "up_blocks.1.resnets.0.conv1": 4,
}
"""Layers of the tiny UNet and the rank of each: linear ones, a convolution of 1 x 1 and one of 3 x 3."""
WORDS = {"encoder.layers.0.self_attn.q_proj": 2, "encoder.layers.0.mlp.fc1": 3}


def factors(module: Any, layers: dict[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors, down and up, for a module's layers with their ranks."""
    draws = torch.Generator().manual_seed(7)
    state = module.state_dict()
    found = {}
    for name, rank in layers.items():
        out, *rest = state[f"{name}.weight"].shape
        down = torch.randn((rank, *rest), generator=draws) * 0.3
        found[name] = (down, torch.randn((out, rank, *[1] * (len(rest) - 1)), generator=draws) * 0.3)
    return found


def peft(unet: dict[str, tuple[Tensor, Tensor]], words: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    named = {f"unet.{name}": each for name, each in unet.items()}
    named |= {f"text_encoder.text_model.{name}": each for name, each in words.items()}
    return {
        f"{name}.lora_{letter}.weight": tensor
        for name, each in named.items()
        for letter, tensor in zip("AB", each, strict=True)
    }


def kohya(
    unet: dict[str, tuple[Tensor, Tensor]], words: dict[str, tuple[Tensor, Tensor]], alpha: float | None = None
) -> dict[str, Tensor]:
    named = {f"lora_unet_{name.replace('.', '_')}": each for name, each in unet.items()}
    named |= {f"lora_te_text_model_{name.replace('.', '_')}": each for name, each in words.items()}
    stored = {}
    for name, (down, up) in named.items():
        stored |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            stored[f"{name}.alpha"] = torch.tensor(alpha)
    return stored


def loaded(tiny: Path, entry: str, dtype: torch.dtype = torch.float32, base: str = "base") -> DiffusionModel:
    (tiny / "catalogue.yaml").write_text(
        "models:\n  base: {pipeline: pipeline, resolution: 16}\n"
        f"  changed: {{base: {base}, {entry}}}\n"
        "  half: {base: base, lora: lora.safetensors, scale: 0.5}\n"
    )
    return load_model(Catalogue.load(embedded=tiny / "catalogue.yaml"), "changed", torch.device("cpu"), dtype)
