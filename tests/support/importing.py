"""What the tests of the import share: the importers in this process, and CompVis' names of a UNet."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unerase_backend.catalogue import Catalogue
from unerase_backend.importing import choice, command, weights, worker
from unerase_backend.importing.folders import Job, architecture_of
from unerase_backend.importing.registry import Imported, importers

RESIDUAL = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def reference() -> Path:
    """The folder of the testbed's reference."""
    return Catalogue.load().model_parts("testbed/reference").folder


def unet_weights(model: str = "testbed/reference") -> dict[str, Tensor]:
    parts = Catalogue.load().model_parts(model)
    [file] = parts.changes["unet"] or [parts.folder / "unet" / "diffusion_pytorch_model.safetensors"]
    assert isinstance(file, Path)
    return load_file(file)


def imported(path: Path, kind: str = "", base: Path | None = None, **fields: Any) -> Imported:
    """Import a file as the process does, but in this one."""
    job: dict[str, Any] = {"files": [str(path)], "kind": kind, "architecture": architecture_of(base) if base else {}}
    job |= {"complete": False, "beside": "", "select": "", "token": ""} | fields
    result = choice.imported(job, importers())[1]
    for tensors in result.files.values():
        weights.check(tensors, 2**26)
    return result


def without_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command do its jobs in this process, which has torch, by the same code and without limits."""

    def run(request: command.Request, job: Job, folder: Path) -> dict[str, Any]:
        asked = command._asked(request, job, folder)
        answer = folder / "answer.json"
        answer.write_text(json.dumps(worker.attempt(worker.prepared(asked), folder, asked)))
        return command._answer(request, 0, answer)

    monkeypatch.setattr(command, "_run", run)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def compvis_owners(config: Mapping[str, Any]) -> Iterator[str]:
    """The modules of a UNet as openaimodel.py of CompVis numbers them; `ATTENTION` stands for those of an attention."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    yield from ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    place = 1
    for level, kind in enumerate(config["down_block_types"]):
        for _ in range(layers):
            yield from (f"input_blocks.{place}.0.{each}" for each in RESIDUAL)
            if kind.startswith("CrossAttn"):
                yield f"input_blocks.{place}.1.ATTENTION"
            place += 1
        if level < levels - 1:
            yield f"input_blocks.{place}.0.op"
            place += 1
    for block in (0, 2):
        yield from (f"middle_block.{block}.{each}" for each in RESIDUAL[:-1])
    yield "middle_block.1.ATTENTION"
    place = 0
    for level, kind in enumerate(config["up_block_types"]):
        for layer in range(layers + 1):
            yield from (f"output_blocks.{place}.0.{each}" for each in RESIDUAL)
            behind = 1
            if kind.startswith("CrossAttn"):
                yield f"output_blocks.{place}.1.ATTENTION"
                behind = 2
            if level < levels - 1 and layer == layers:
                yield f"output_blocks.{place}.{behind}.conv"
            place += 1
