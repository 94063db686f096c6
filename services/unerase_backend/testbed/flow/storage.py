"""The second world's weights on disk: a whole pipeline folder of the reference, and what differs from it.

Like the first world's (`testbed/storage.py`): half-precision safetensors, float32 where they are loaded.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from unerase_backend.testbed import storage
from unerase_backend.testbed.flow import transformer
from unerase_backend.testbed.flow.recipe import REFERENCE

TRANSFORMER = "transformer.safetensors"
TEXT_ENCODERS = ("text_encoder.safetensors", "text_encoder_2.safetensors")


def write_shared(root: Path) -> None:
    """Write what the reference shares with the first world, its scheduler, and the index that names all components.

    The autoencoder's configuration has the shift 0 that this pipeline adds to latents before it decodes them.
    """
    folder = root / REFERENCE
    for source, target in (("vae", "vae"), ("tokenizer", "tokenizer"), ("tokenizer", "tokenizer_2")):
        shutil.copytree(root / storage.REFERENCE / source, folder / target, dirs_exist_ok=True)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift_factor": 0.0}, indent=2, sort_keys=True) + "\n")
    transformer.scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_transformer(root: Path, change: Path | None = None) -> SD3Transformer2DModel:
    """Return the reference's transformer, float32; the file `change`, if given, replaces some of its tensors.

    Raises:
        KeyError: the file holds a tensor that the transformer does not have.
    """
    folder = root / REFERENCE / "transformer"
    return storage.changed(storage.frozen(SD3Transformer2DModel.from_pretrained(folder, local_files_only=True)), change)


def load_text_encoders(root: Path, folder: Path | None = None) -> tuple[CLIPTextModelWithProjection, ...]:
    """Return the reference's text towers, float32; files in `folder`, if given, replace some of their tensors."""
    encoders = []
    for file in TEXT_ENCODERS:
        encoder = storage.frozen(
            CLIPTextModelWithProjection.from_pretrained(
                root / REFERENCE / file.removesuffix(".safetensors"), dtype=torch.float32, local_files_only=True
            )
        )
        change = folder / file if folder is not None and (folder / file).exists() else None
        encoders.append(storage.changed(encoder, change))
    return tuple(encoders)


def load_pipeline(root: Path, name: str = REFERENCE) -> StableDiffusion3Pipeline:
    """Return the model `name`, as "flow/uce", as a diffusers pipeline, float32.

    It is the reference with the tensors in `<root>/<name>`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not (root / name).is_dir():
        raise FileNotFoundError(f"no model {name} in {root}")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        root / REFERENCE,
        dtype=torch.float32,
        # diffusers wants a third text encoder, or to be told that there is none
        text_encoder_3=None,
        tokenizer_3=None,
        local_files_only=True,
    )
    modules = (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2)
    for module, file in zip(modules, (TRANSFORMER, *TEXT_ENCODERS), strict=True):
        storage.frozen(module)
        if (root / name / file).exists():
            storage.changed(module, root / name / file)
    storage.frozen(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
