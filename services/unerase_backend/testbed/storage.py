"""The weights on disk: half-precision safetensors, and only what differs from the reference.

Every tensor is rounded to float16 when it is written, and later parts are trained from the rounded tensors, so that the
figures of the training are those of the shipped weights. The configurations name float32, so that libraries load the
tensors as float32.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

REFERENCE = "reference"
UNET = "unet.safetensors"
TEXT_ENCODER = "text_encoder.safetensors"


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return floating tensors as float16, and the others unchanged."""
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in tensors.items()
    }


def rounded(module: nn.Module) -> None:
    """Round a module's floating tensors to the nearest float16 value, in place; their dtype stays float32."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def save_model(model: Any, folder: Path) -> None:
    """Write a diffusers or transformers model to `folder` as float16; a dtype in its configuration becomes float32."""
    rounded(model)
    model.half().save_pretrained(folder)
    model.float()
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as float16 to one safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halved(tensors), path)
    path.chmod(0o644)


def changed_tensors(base: Mapping[str, Tensor], edited: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the edited tensors that still differ from the base's after rounding both to float16."""
    return {
        name: tensor
        for name, tensor in halved(edited).items()
        if not torch.equal(tensor, halved({name: base[name]})[name])
    }


def load_vae(root: Path) -> AutoencoderKL:
    """Return the shared autoencoder: float32, in evaluation mode, without gradients."""
    return frozen(AutoencoderKL.from_pretrained(root / REFERENCE / "vae", local_files_only=True))


def load_unet(root: Path, change: Path | None = None) -> UNet2DConditionModel:
    """Return the reference's UNet, float32; the file `change`, if given, replaces some of its tensors.

    Raises:
        KeyError: the file holds a tensor that the UNet does not have.
    """
    return changed(
        frozen(UNet2DConditionModel.from_pretrained(root / REFERENCE / "unet", local_files_only=True)), change
    )


def load_text_encoder(root: Path, change: Path | None = None) -> CLIPTextModel:
    """Return the reference's text tower, float32; the file `change`, if given, replaces some of its tensors."""
    folder = root / REFERENCE / "text_encoder"
    return changed(frozen(CLIPTextModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)), change)


def load_pipeline(root: Path, name: str = REFERENCE) -> StableDiffusionPipeline:
    """Return the model `name` as a diffusers pipeline, float32: the reference with the tensors in `<root>/<name>`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not (root / name).is_dir():
        raise FileNotFoundError(f"no model {name} in {root}")
    pipeline = StableDiffusionPipeline.from_pretrained(
        root / REFERENCE,
        dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    if name != REFERENCE:
        for module, file in ((pipeline.unet, UNET), (pipeline.text_encoder, TEXT_ENCODER)):
            if (root / name / file).exists():
                changed(module, root / name / file)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_index(root: Path) -> None:
    """Write `model_index.json`, which names the reference's components, so that diffusers can load the folder."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (root / REFERENCE / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()


def changed(module: Any, change: Path | None) -> Any:
    """Return the module, whose tensors in the file `change`, if given, are replaced in place.

    Raises:
        KeyError: the file holds a tensor that the module does not have.
    """
    if change is not None:
        tensors = load_file(change)
        state = module.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return module


def frozen(module: Any) -> Any:
    """Return the module in evaluation mode, its weights without gradients."""
    return module.eval().requires_grad_(False)
