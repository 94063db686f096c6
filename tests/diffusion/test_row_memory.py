"""What a row takes, against the storage of every tensor of a call of diffusers' own classes, at small sizes."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tools.published_models import PUBLISHED, Part
from tools.tracked_memory import inputs_of, row_bytes
from unerase_backend.diffusion.row_memory import row_memory

SD3 = {
    "num_layers": 4,
    "num_attention_heads": 8,
    "caption_projection_dim": 512,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "in_channels": 16,
}
DUAL = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
FLUX = {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8, "joint_attention_dim": 64}
PIXART = {"num_layers": 4, "num_attention_heads": 8, "cross_attention_dim": 576, "caption_channels": 64}
SANA = {"num_layers": 4, "num_attention_heads": 28, "cross_attention_dim": 896, "num_cross_attention_heads": 8}
TRANSFORMERS = [
    ("SD3Transformer2DModel", SD3, 128),
    ("SD3Transformer2DModel", SD3, 64),
    ("SD3Transformer2DModel", {**SD3, **DUAL}, 128),
    ("FluxTransformer2DModel", FLUX, 128),
    ("PixArtTransformer2DModel", {**PIXART, "use_additional_conditions": False}, 128),
    ("SanaTransformer2DModel", {**SANA, "caption_channels": 64}, 32),
]
TEXT = 128


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "config", "side"), TRANSFORMERS)
def test_a_row_of_a_transformer_is_linear_in_tokens_and_width(
    kind: str, config: dict[str, Any], side: int, dtype: str
) -> None:
    """The constants are those of published sizes; a network a tenth as large has more beside its layers."""
    part = Part(kind, config)
    whole = part.whole_config()
    expected, inputs = row_memory(kind, whole, side, TEXT), inputs_of(kind, whole, side, TEXT)
    plain, kept = (row_bytes(part.module, inputs, getattr(torch, dtype), gradient=each) for each in (False, True))
    assert plain == pytest.approx(expected.row_bytes(dtype), rel=0.2)
    assert kept == pytest.approx(expected.gradient_row_bytes(dtype), rel=0.15)


def test_a_unet_with_many_layers_of_attention_keeps_more() -> None:
    (xl,) = (model.denoiser for model in PUBLISHED if model.family == "stable-diffusion-xl")
    small = {**xl.config, "block_out_channels": (64, 128, 256), "attention_head_dim": [2, 4, 8]}
    part = Part("UNet2DConditionModel", {**small, "cross_attention_dim": 64})
    whole = part.whole_config()
    expected, inputs = row_memory(part.kind, whole, 64, 0), inputs_of(part.kind, whole, 64, 0)
    kept = row_bytes(part.module, inputs, torch.float32, gradient=True)
    assert kept == pytest.approx(expected.gradient_row_bytes("float32"), rel=0.15)
    fewer = row_memory(part.kind, {**whole, "transformer_layers_per_block": [1, 2, 4]}, 64, 0)
    assert fewer.gradient.float32 < 0.75 * expected.gradient.float32


def test_a_unet_like_stable_diffusions_takes_what_was_measured() -> None:
    with torch.device("meta"):
        config = UNet2DConditionModel(cross_attention_dim=768).config
    row = row_memory("UNet2DConditionModel", config, 64, 0)
    assert (row.row_bytes("float32"), row.row_bytes("float16")) == (4096 * 320 * 113.0, 4096 * 320 * 69.0)
    assert (row.gradient.float32, row.gradient.half) == (1102.0, 552.0)


def test_a_class_that_was_not_measured_takes_the_most_of_each() -> None:
    config = {"patch_size": 2, "num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 64}
    other = row_memory("OwnTransformer2DModel", config, 64, 128)
    for kind in ("SD3Transformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel"):
        known = row_memory(kind, config, 64, 128)
        for dtype in ("float32", "bfloat16"):
            assert other.row_bytes(dtype) >= known.row_bytes(dtype)
            assert other.gradient_row_bytes(dtype) >= known.gradient_row_bytes(dtype)
