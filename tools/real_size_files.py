"""Writes files of real size with random weights: Stable Diffusion 1.4's architecture, two changes of it, three judges.

The architectures are those of the published configurations. The tokenizer is the testbed's, because the published one
cannot be had here; the text encoder has the published vocabulary's size all the same. Pictures are the testbed's,
enlarged. The catalogue names the model, the judges and the concepts; `unerase import` adds the changes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    ResNetConfig,
    ResNetForImageClassification,
)

from unerase_backend.catalogue import EMBEDDED

WEIGHTS = EMBEDDED.parent
SIDE = 512
TILES = 4
LENGTH = 77
VOCABULARY = 49_408
MODEL = "sd-1.4"
PARTIAL, LORA = "esd-x.pt", "pytorch_lora_weights.safetensors"
CONCEPTS = ("hourglass", "heart", "fish")
PLACEBO = "fish"

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "sample_size": SIDE,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": LENGTH,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}


def make_files(out: Path) -> Path:
    """Write everything below `out`, unless it is there, and return the catalogue's path."""
    catalogue = out / "catalogue.yaml"
    if not catalogue.exists():
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(14)
        unet = _pipeline(out / MODEL)
        _partial(unet, out / PARTIAL)
        _lora(unet, out / LORA)
        del unet
        write_clip(out / "clip")
        for name in ("judge", "second-judge"):
            _classifier(out / name)
        _pictures(out / "pictures")
        catalogue.write_text(yaml.safe_dump(_catalogue(), sort_keys=False))
    return catalogue


def _pipeline(folder: Path) -> Any:
    unet = UNet2DConditionModel(**UNET).half()
    unet.save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).half().save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).half().save_pretrained(folder / "text_encoder")
    _tokenizer(folder / "tokenizer")
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    _write(folder / "model_index.json", index)
    return unet


def _partial(unet: Any, path: Path) -> None:
    """Write what ESD-x publishes: the weights of the cross-attention alone, in torch's own format."""
    state = {name: tensor for name, tensor in unet.state_dict().items() if ".attn2." in name}
    torch.save({name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in state.items()}, path)


def _lora(unet: Any, path: Path, rank: int = 4) -> None:
    """Write a LoRA of the cross-attention's keys and values, in PEFT's form."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in unet.state_dict().items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            module = f"unet.{name.removesuffix('.weight')}"
            state[f"{module}.lora_A.weight"] = 0.05 * torch.randn(rank, tensor.shape[1])
            state[f"{module}.lora_B.weight"] = 0.05 * torch.randn(tensor.shape[0], rank)
    save_file(state, path, metadata={"format": "pt"})


def write_clip(folder: Path) -> None:
    """Write a CLIP of ViT-B/32's size with random weights."""
    text = CLIPTextConfig(**TEXT | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8})
    config = CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(patch_size=32).to_dict())
    CLIPModel(config).half().save_pretrained(folder)
    _tokenizer(folder)
    _write(folder / "preprocessor_config.json", _PREPROCESSOR)


def _classifier(folder: Path) -> None:
    """A ResNet-50 with a thousand labels."""
    labels = [*CONCEPTS, *(f"label {index}" for index in range(len(CONCEPTS), 1000))]
    config = ResNetConfig(
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    _write(folder / "preprocessor_config.json", _PREPROCESSOR | {"image_processor_type": "ConvNextImageProcessor"})


def _tokenizer(folder: Path) -> None:
    shutil.copytree(WEIGHTS / "reference" / "tokenizer", folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    _write(path, json.loads(path.read_text()) | {"model_max_length": LENGTH})


def _pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in CONCEPTS:
        with Image.open(WEIGHTS / "pictures" / f"{name}.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB"))[:32, : 32 * TILES]
        Image.fromarray(pixels).resize((SIDE * TILES, SIDE), Image.Resampling.BICUBIC).save(folder / f"{name}.png")


def _catalogue() -> dict[str, Any]:
    concepts = {
        f"mine/{name}": {
            "kind": "object",
            "names": [name],
            "prompts": ["a picture of a {concept}"],
            "held_out_prompts": ["an image of a {concept}"],
            "labels": {"sd/clip": [f"a picture of a {name}"], "sd/judge": [name], "sd/second-judge": [name]},
            "pictures": f"pictures/{name}.png",
            "tile": SIDE,
            **({"placebo": True} if name == PLACEBO else {}),
        }
        for name in CONCEPTS
    }
    judges = {
        "sd/clip": {"kind": "clip", "path": "clip"},
        "sd/judge": {"kind": "classifier", "path": "judge"},
        "sd/second-judge": {"kind": "classifier", "path": "second-judge"},
    }
    return {
        "models": {"sd/1.4": {"pipeline": MODEL, "resolution": SIDE, "steps": 50}},
        "judges": judges,
        "concepts": concepts,
    }


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
