"""The model that the GPU's bench runs: Stable Diffusion 1.4's architecture, or a tiny one, with random weights."""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from tools.real_size_files import LENGTH, SCHEDULER, SIDE, TEXT, UNET, VAE, write_clip
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.classification.registry import Judge, kinds
from unerase_backend.diffusion.backbones.stable_diffusion import StableDiffusion
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.schedule import Schedule

JUDGE_BATCH = 32


@dataclass(frozen=True)
class Size:
    """An architecture, and the shapes in which it is measured."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    side: int
    """Of the pictures, in pixels."""
    prompt_length: int
    steps: int
    rows: tuple[int, ...]
    """Of a UNet call without gradients, ascending."""
    gradient_rows: tuple[int, ...]
    inversion_batches: tuple[int, ...]


STABLE_DIFFUSION = Size(
    name="Stable Diffusion 1.4",
    unet=UNET,
    vae=VAE,
    text=TEXT,
    side=SIDE,
    prompt_length=LENGTH,
    steps=50,
    rows=(1, 2, 8, 24, 32, 96),
    gradient_rows=(1, 4, 24),
    inversion_batches=(4, 16),
)

TINY = Size(
    name="tiny",
    unet={
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    },
    vae={
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    text={
        "vocab_size": 2000,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "hidden_act": "quick_gelu",
    },
    side=16,
    prompt_length=16,
    steps=4,
    rows=(1, 2, 4),
    gradient_rows=(1, 2),
    inversion_batches=(2,),
)


def random_model(size: Size, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """Return the model on the device as generation holds it: the VAE in float32, channels last."""
    torch.manual_seed(14)
    with torch.device(device):
        unet = UNet2DConditionModel(**size.unet).to(dtype)
        vae = AutoencoderKL(**size.vae)
        text_encoder = CLIPTextModel(CLIPTextConfig(**size.text)).to(dtype)
    for module in (unet, vae, text_encoder):
        module.eval().requires_grad_(False)
    for module in (unet, vae):
        module.to(memory_format=torch.channels_last)
    # The testbed's, because the published one cannot be had without a network; its ids are within any vocabulary here.
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED.parent / "reference" / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = size.prompt_length
    return DiffusionModel(
        name=size.name,
        digest=size.name,
        backbone=StableDiffusion(
            {"unet": unet, "vae": vae, "text_encoder": text_encoder}, {"tokenizer": tokenizer}, index={}
        ),
        schedule=Schedule.from_config(SCHEDULER),
        resolution=size.side,
        device=device,
        dtype=dtype,
    )


def published_pipeline(model: DiffusionModel) -> Any:
    """Return diffusers' pipeline over the model's own UNet and text encoder, all of it in the model's number type."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(model.vae).to(model.dtype),
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.denoiser,
        scheduler=DDIMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def judge_of(size: Size, folder: Path, device: torch.device) -> Judge:
    """Return a CLIP judge on the device: of ViT-B/32's size with random weights, or the testbed's beside a tiny model.

    `folder` takes its files.
    """
    if size is STABLE_DIFFUSION:
        write_clip(folder)
    else:
        shutil.copytree(EMBEDDED.parent / "clip", folder, dirs_exist_ok=True)
    return kinds()["clip"].load(folder, device, torch.float32, JUDGE_BATCH)
