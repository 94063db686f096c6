"""Stability's counted names of a UNet's layers, as diffusers itself reads the LoRAs of kohya's scripts."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)

from unerase_backend.catalogue.lora import flat, layers_of, parse
from unerase_backend.catalogue.unet_blocks import counted


def unet_of(layers: int) -> UNet2DConditionModel:
    """A UNet with SDXL's blocks."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            layers_per_block=layers,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=4,
            cross_attention_dim=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )


@pytest.mark.parametrize("layers", [1, 2])
def test_diffusers_reads_the_counted_names_as_the_same_layers(layers: int) -> None:
    unet = unet_of(layers)
    kinds = torch.nn.Linear | torch.nn.Conv2d
    wanted = {name for name, layer in unet.named_modules() if "block" in name and isinstance(layer, kinds)}
    names = counted(wanted)
    assert names.keys() == wanted
    assert not any(name == other for name, other in names.items())
    stored = {}
    for other in names.values():
        stem = f"lora_unet_{flat(other)}"
        stored[f"{stem}.lora_down.weight"] = stored[f"{stem}.lora_up.weight"] = torch.ones(1)
        stored[f"{stem}.alpha"] = torch.tensor(1.0)
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(stored), unet.config)
    read, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    # diffusers names them as its processors did once.
    found = {parsed.module for key in read if (parsed := parse(key)) and parsed.part == "unet"}
    assert found == wanted


def test_every_layer_has_both_names() -> None:
    unet = unet_of(2)
    weighted = {name.removesuffix(".weight") for name in unet.state_dict() if name.endswith(".weight")}
    names = layers_of(unet.state_dict())
    for name in weighted:
        assert names[flat(name)] == name
    assert names["input_blocks_4_1_transformer_blocks_0_attn2_to_k"] == (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    )
    assert names["label_emb_0_2"] == "add_embedding.linear_2"
    assert set(names.values()) == weighted


def test_other_modules_have_no_counted_names() -> None:
    assert counted(["encoder.layers.0.self_attn.q_proj", "transformer_blocks.0.attn.to_q", "conv_in"]) == {}
