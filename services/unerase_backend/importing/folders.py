"""Pipeline folders in diffusers' layout: their configurations, their pickled weights, and copies with safetensors."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unerase_backend.catalogue.backbone_kinds import BACKBONES, backbone_of
from unerase_backend.catalogue.families import DEFAULT_FAMILY

PARTS = {"unet": "unet", "vae": "vae", "text_encoder": "text-encoder"}
"""The parts with weights, and the kind by which each is imported."""
_PART = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae", "CLIPTextModel": "text_encoder"}
_CONFIGURATIONS = (".json", ".txt")
_STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
_MAX_CONFIG_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Job:
    """What one process is to import."""

    kind: str
    files: tuple[Path, ...]
    architecture: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False
    """Whether the files hold a whole part, whatever layout its names seem to have."""
    beside: str = ""
    """The content of `adapter_config.json` beside the file."""


def architecture_of(folder: Path) -> dict[str, Any]:
    """Return the configurations of a pipeline's parts, or of the one part whose folder it is.

    Raises:
        ValueError: there is none, or one is not a JSON object.
    """
    found = {part: _json(folder / part / "config.json") for part in PARTS if (folder / part / "config.json").is_file()}
    if found or (folder / "model_index.json").is_file():
        return {part: content for part, content in found.items() if _is_known(part, content)}
    if (folder / "config.json").is_file():
        content = _json(folder / "config.json")
        kind = content.get("_class_name") or next(iter(content.get("architectures") or [""]), "")
        if kind in _PART:
            found = {_PART[kind]: content}
    if not found:
        raise ValueError(f"{folder.name}: is no folder of a pipeline or of a part, with its config.json")
    return found


def _is_known(part: str, content: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of a class whose tensors are known here: of other families not all are."""
    if part == "text_encoder":
        return str(content.get("model_type", "clip")).startswith("clip")
    named = content.get("_class_name")
    return named is None or _PART.get(str(named)) == part


def jobs_of(folder: Path, kind: str) -> list[Job]:
    """Return a job for every part of a pipeline's folder that has its weights in pickles alone.

    Raises:
        ValueError: it is no pipeline's folder, a part has no weights, or every part has safetensors.
    """
    if kind not in ("", "model"):
        raise ValueError(f"a folder is imported --as model, not --as {kind}")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder.name}: is no pipeline's folder, which has a model_index.json")
    named = _json(folder / "model_index.json").get("_class_name")
    if (family := backbone_of(named) if isinstance(named, str) else None) and family.family != DEFAULT_FAMILY:
        known = BACKBONES.all()[DEFAULT_FAMILY].title
        what = f"{folder.name}: is a pipeline of {family.title}, and only those of {known} are imported whole"
        raise ValueError(f"{what}; write it again as safetensors by diffusers' save_pretrained")
    architecture = architecture_of(folder)
    jobs = []
    for part, each in PARTS.items():
        if part not in architecture:
            raise ValueError(f"{folder.name}: has no {part} with a config.json")
        if any((folder / part).glob("*.safetensors")):
            continue
        files = _pickles(folder / part)
        if not files:
            raise ValueError(f"{folder.name}: has no weights of the {part}")
        jobs.append(Job(each, files, {part: architecture[part]}, complete=True))
    if not jobs:
        raise ValueError(f"{folder.name}: has safetensors for every part; name it in a catalogue (pipeline:) as it is")
    return jobs


def _pickles(folder: Path) -> tuple[Path, ...]:
    files = sorted(path for path in folder.glob("*.bin") if path.is_file())
    for stem in _STEMS:
        whole = [path for path in files if path.name == f"{stem}.bin"]
        shards = [path for path in files if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}\.bin", path.name)]
        halves = [path for path in files if re.fullmatch(rf"{stem}\.fp16\.bin", path.name)]
        for found in (whole, shards, halves):
            if found:
                _check_shards(found)
                return tuple(found)
    return ()


def _check_shards(files: list[Path]) -> None:
    of = re.search(r"-of-(\d{5})\.bin$", files[0].name)
    if of and len(files) != int(of[1]):
        there = {path.name for path in files}
        expected = [re.sub(r"-\d{5}-of", f"-{index + 1:05d}-of", files[0].name) for index in range(int(of[1]))]
        missing = next((name for name in expected if name not in there), "one")
        raise ValueError(f"{files[0].parent.name}: the shard {missing} is missing")


def write_folder(origin: Path, target: Path, weights: Mapping[str, Path]) -> None:
    """Write a pipeline's folder with the configurations of `origin` and with new weights by part.

    Weights of `origin` that are safetensors already are copied.
    """
    target.mkdir()
    for path in sorted(origin.iterdir()):
        if path.is_file() and path.suffix in _CONFIGURATIONS:
            shutil.copyfile(path, target / path.name)
    for part in (*PARTS, "tokenizer", "scheduler"):
        (target / part).mkdir()
        endings = _CONFIGURATIONS if part in weights else (*_CONFIGURATIONS, ".safetensors")
        for path in sorted((origin / part).iterdir()) if (origin / part).is_dir() else ():
            if path.is_file() and path.suffix in endings and not (part in weights and ".index." in path.name):
                shutil.copyfile(path, target / part / path.name)
        if part in weights:
            file = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            shutil.move(weights[part], target / part / f"{file}.safetensors")


def resolution_of(folder: Path) -> int:
    """Return the side of a pipeline's pictures in pixels, from its configurations; 0 if they do not say it."""
    try:
        unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
        side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (ValueError, OSError, KeyError, TypeError):
        return 0
    return side if isinstance(side, int) else 0


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path.parent.name}/{path.name}: is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name}: is not a JSON object")
    return content
