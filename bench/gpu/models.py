"""The model that the GPU's bench runs: the architecture of a published one, or a tiny one, with random weights."""

import copy
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import AutoTokenizer

from bench.gpu.sizes import Size
from tools.real_size_files import write_clip
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.catalogue.backbone_kinds import BACKBONES, Role, of_role
from unerase_backend.classification.registry import Judge, kinds
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.schedule import Schedule

JUDGE_BATCH = 32


def random_model(size: Size, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """Return the model on the device as generation holds it: the autoencoder in float32, channels last."""
    torch.manual_seed(14)
    kind: Any = BACKBONES.all()[size.family]
    modules = {}
    for part, config in size.parts.items():
        with torch.device(device):
            modules[part] = kind.build(part, config).eval().requires_grad_(False)
        if kind.parts[part].role is not Role.AUTOENCODER:
            modules[part].to(dtype)
        if kind.parts[part].library == "diffusers":
            modules[part].to(memory_format=torch.channels_last)
    # The testbed's, because the published one cannot be had without a network; its ids are within any vocabulary here.
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED.parent / "reference" / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = size.prompt_length
    backbone = kind(modules, dict.fromkeys(of_role(kind.parts, Role.TOKENIZER), tokenizer), index={})
    call = backbone.pipeline_call(backbone.latent_shape(size.side))
    return DiffusionModel(
        name=size.name,
        digest=size.name,
        backbone=backbone,
        schedule=Schedule.from_config(size.scheduler).called(call),
        resolution=size.side,
        device=device,
        dtype=dtype,
    )


def published_pipeline(model: DiffusionModel, size: Size) -> Any:
    """Return diffusers' pipeline over the model's own denoiser and text encoders, all in the model's number type."""
    kind, backbone = type(model.backbone), model.backbone
    tokenizers = dict.fromkeys(of_role(kind.parts, Role.TOKENIZER), model.tokenizer)
    absent = {part: None for part, known in kind.parts.items() if not known.required}
    flow = size.scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler
    checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, kind.pipelines[0])(
        **{**backbone.modules, **tokenizers, **absent},
        **(checker if size.family == "stable-diffusion" else {}),
        scheduler=scheduler.from_config(size.scheduler),
    )
    pipeline.vae = copy.deepcopy(backbone.autoencoder).to(model.dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def judge_of(size: Size, folder: Path, device: torch.device) -> Judge:
    """Return a CLIP judge on the device: of ViT-B/32's size with random weights, or the testbed's beside a tiny model.

    `folder` takes its files.
    """
    if size.tiny:
        shutil.copytree(EMBEDDED.parent / "clip", folder, dirs_exist_ok=True)
    else:
        write_clip(folder)
    return kinds()["clip"].load(folder, device, torch.float32, JUDGE_BATCH)
