"""Models whose files are as those of real ones, but hold next to nothing: enough to plan with, and not to load."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from support.pipeline_parts import STEMS
from unerase_backend.catalogue import EMBEDDED

REFERENCE = EMBEDDED.parent / "reference"
_TENSORS = {
    "unet": ("conv_in.weight", "conv_in.bias"),
    "vae": ("encoder.conv_in.weight", "encoder.conv_in.bias"),
    "text_encoder": ("text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"),
}


def write_weights(path: Path, content: str, part: str = "unet") -> Path:
    """Write a safetensors file of two numbers, with a digest that depends on `content`; return its path."""
    tensors = {name: np.zeros(1, np.float32) for name in _TENSORS[part]}
    save_file(tensors, path, metadata={"content": content})
    return path


def write_pipeline(folder: Path, content: str) -> Path:
    """Write a pipeline's folder with the configurations of the testbed's reference; return the folder."""
    shutil.copytree(REFERENCE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, stem in STEMS.items():
        write_weights(folder / part / f"{stem}.safetensors", f"{content} {part}", part)
    return folder
