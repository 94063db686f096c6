"""What `unerase serve` says before it starts anything: a line for each model that cannot be used, and it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from support.small_files import write_pipeline
from unerase_backend.catalogue import Catalogue
from unerase_backend.checking.at_start import unusable_models

LORA = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{}.weight"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be used, a LoRA named as a UNet, an SDXL, and pickled weights."""
    folder = tmp_path_factory.mktemp("start")
    for name in ("plain", "cascade", "bin"):
        write_pipeline(folder / name, name)
    index = folder / "cascade" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableCascadeCombinedPipeline"}))
    unet = folder / "bin" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    lora = {LORA.format(side): np.zeros((2, 2), np.float32) for side in "AB"}
    save_file(lora, folder / "lora.safetensors")
    models = {f"own/{name}": {"pipeline": name, "resolution": 32} for name in ("plain", "cascade", "bin")}
    models["own/lora"] = {"base": "own/plain", "unet": "lora.safetensors"}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return path


def test_each_model_that_cannot_be_used_is_a_line(catalogue: Path) -> None:
    warnings = list(unusable_models(Catalogue.load([str(catalogue)])))
    told = dict(line.removeprefix("warning: ").split(" cannot be used: ") for line in warnings)
    assert told.keys() == {f"model 'own/{name}' (own.yaml: models.own/{name})" for name in ("cascade", "bin", "lora")}
    assert all(line.startswith("warning: ") and "\n" not in line for line in warnings)
    said = {place.split("'")[1]: reason for place, reason in told.items()}
    assert "StableCascadeCombinedPipeline (Stable Cascade)" in said["own/cascade"]
    assert "diffusion_pytorch_model.bin" in said["own/bin"]
    assert "a LoRA in PEFT's layout; import it: unerase import lora.safetensors --as lora" in said["own/lora"]


def test_a_guard_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_file({"direction": np.ones(3, np.float32)}, tmp_path / "own.safetensors")
    guards = {
        name: {"kind": "steering", "module": module, "direction": "own.safetensors"}
        for name, module in (("missing", "mid_blok"), ("narrow", "mid_block"))
    }
    models = {f"own/{name}": {"base": "testbed/reference", "guards": [guard]} for name, guard in guards.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"models": models}))
    missing, narrow = unusable_models(Catalogue.load([str(tmp_path / "own.yaml")]), within_seconds=60)
    assert "own/missing" in missing
    assert "the UNet has no module 'mid_blok'" in missing
    assert "own/narrow" in narrow
    assert "features, and the direction 3" in narrow


def test_models_that_there_is_no_time_for_are_counted(catalogue: Path) -> None:
    known = Catalogue.load([str(catalogue)])
    (warning,) = unusable_models(known, within_seconds=0)
    count = len(known.models)
    assert warning.startswith(
        f"warning: {count} of {count} models were not looked at for want of time; `unerase check`"
    )


def test_it_imports_no_torch(catalogue: Path) -> None:
    code = (
        "import sys; from unerase_backend.checking.at_start import check_catalogues, unusable_models; "
        f"found = list(unusable_models(check_catalogues([{str(catalogue)!r}]))); "
        "sys.exit(not (found and {'torch', 'ray', 'diffusers'}.isdisjoint(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_serve_says_them_and_goes_on(catalogue: Path) -> None:
    """It goes on to its plan, which a GPU with next to no memory, or none, then ends before Ray starts."""
    serve = ("serve", "--catalogue", str(catalogue), "--device", "cuda", "--gpu-memory-gb", "0.0001")
    ended = subprocess.run(
        [sys.executable, "-m", "unerase", *serve], capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 2
    *warnings, last = ended.stderr.splitlines()
    assert warnings == list(unusable_models(Catalogue.load([str(catalogue)])))
    assert last.startswith("device: ")
