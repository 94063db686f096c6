"""The architectures that the GPU's bench runs: those of published models, and tiny ones to try the program.

The configurations are those of the published folders: Stable Diffusion 1.4, Stable Diffusion XL base 1.0, and Stable
Diffusion 3 medium without T5, for which zeros stand in its pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tools.real_size_files import LENGTH, SCHEDULER, SIDE, TEXT, UNET, VAE

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Size:
    """An architecture, and the shapes in which it is measured."""

    name: str
    family: str
    """A backbone's."""
    parts: Configs
    """The configuration of each part with weights."""
    scheduler: Mapping[str, Any]
    side: int
    """Of the pictures, in pixels."""
    prompt_length: int
    guidance_scale: float
    steps: int
    rows: tuple[int, ...]
    """Of a call of the denoiser without gradients, ascending."""
    gradient_rows: tuple[int, ...]
    inversion_batches: tuple[int, ...]
    tiny: bool = False
    """Whether it only tries the program."""


_TEXT_G = {
    **TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

STABLE_DIFFUSION = Size(
    name="Stable Diffusion 1.4",
    family="stable-diffusion",
    parts={"unet": UNET, "vae": VAE, "text_encoder": TEXT},
    scheduler=SCHEDULER,
    side=SIDE,
    prompt_length=LENGTH,
    guidance_scale=7.5,
    steps=50,
    rows=(1, 2, 8, 24, 32, 96),
    gradient_rows=(1, 4, 24),
    inversion_batches=(4, 16),
)

STABLE_DIFFUSION_XL = Size(
    name="Stable Diffusion XL",
    family="stable-diffusion-xl",
    parts={
        "unet": {
            "sample_size": 128,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": TEXT,
        "text_encoder_2": _TEXT_G,
    },
    scheduler=SCHEDULER,
    side=1024,
    prompt_length=LENGTH,
    guidance_scale=5.0,
    steps=50,
    rows=(1, 2, 8, 16, 32),
    gradient_rows=(1, 4),
    inversion_batches=(4,),
)

STABLE_DIFFUSION_3 = Size(
    name="Stable Diffusion 3 medium without T5",
    family="stable-diffusion-3",
    parts={
        "transformer": {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        "vae": {
            **VAE,
            "sample_size": 1024,
            "latent_channels": 16,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        "text_encoder": TEXT,
        "text_encoder_2": _TEXT_G,
    },
    scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    side=1024,
    prompt_length=LENGTH,
    guidance_scale=7.0,
    steps=28,
    rows=(1, 2, 8, 16, 32),
    gradient_rows=(1, 4),
    inversion_batches=(4,),
)

_TINY_TEXT = {
    "vocab_size": 2000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_act": "quick_gelu",
    "projection_dim": 32,
}
_TINY_VAE = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}


def _tiny(size: Size, parts: Configs) -> Size:
    return replace(
        size,
        name=f"tiny {size.name}",
        parts=parts,
        side=16,
        prompt_length=16,
        steps=4,
        rows=(1, 2, 4),
        gradient_rows=(1, 2),
        inversion_batches=(2,),
        tiny=True,
    )


SIZES: Mapping[str, Size] = {"sd-1.4": STABLE_DIFFUSION, "sdxl": STABLE_DIFFUSION_XL, "sd-3": STABLE_DIFFUSION_3}
"""The published architectures by the names that the command takes."""

TINY_SIZES: Mapping[str, Size] = {
    "sd-1.4": _tiny(STABLE_DIFFUSION, {"unet": _TINY_UNET, "vae": _TINY_VAE, "text_encoder": _TINY_TEXT}),
    "sdxl": _tiny(
        STABLE_DIFFUSION_XL,
        {
            "unet": {
                **_TINY_UNET,
                "cross_attention_dim": 64,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "vae": _TINY_VAE,
            "text_encoder": _TINY_TEXT,
            "text_encoder_2": _TINY_TEXT,
        },
    ),
    "sd-3": _tiny(
        STABLE_DIFFUSION_3,
        {
            "transformer": {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 1,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "joint_attention_dim": 64,
                "caption_projection_dim": 16,
                "pooled_projection_dim": 64,
                "pos_embed_max_size": 16,
            },
            "vae": {**_TINY_VAE, "shift_factor": 0.0609},
            "text_encoder": _TINY_TEXT,
            "text_encoder_2": _TINY_TEXT,
        },
    ),
}
"""Tiny architectures of the same families."""
