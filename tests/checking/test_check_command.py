"""What `unerase check` finds, in a folder as people have it: every fault by file and key, and nothing computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from unerase.v1.models_pb2 import ModelCheck
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.check_command import check
from unerase_backend.checking.models import check_model
from unerase_backend.checking.process import check_in_process
from unerase_backend.runtime.errors import UnavailableError
from unerase_backend.runtime.settings import RoomSettings

REFERENCE = EMBEDDED.parent / "reference"
REASONS = {
    "own/plain": set(),
    "own/bin": {"WEIGHTS_NOT_SAFETENSORS"},
    "own/flow": {"SCHEDULE_UNSUPPORTED"},
    "own/cascade": {"MODEL_UNSUPPORTED"},
    "own/narrow": {"WEIGHTS_WRONG_SHAPE"},
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines that are each broken in one way, a concept whose name nothing reads, a label that no judge has."""
    folder = tmp_path_factory.mktemp("check")
    for name in ("plain", "bin", "flow", "cascade", "narrow"):
        shutil.copytree(REFERENCE, folder / name)
    unet = folder / "bin" / "unet"
    next(unet.glob("*.safetensors")).rename(unet / "diffusion_pytorch_model.bin")
    _change(folder / "flow" / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    _change(folder / "cascade" / "model_index.json", _class_name="StableCascadeCombinedPipeline")
    narrow = folder / "narrow" / "unet" / "config.json"
    _change(narrow, block_out_channels=[each // 2 for each in json.loads(narrow.read_text())["block_out_channels"]])
    shutil.copytree(EMBEDDED.parent / "judge", folder / "judge")
    prompt = f"a picture of {'very ' * 100}{{concept}}"
    content = {
        "models": {f"own/{name}": {"pipeline": name, "resolution": 32} for name in ("plain", "bin", "flow", "cascade")}
        | {"own/narrow": {"pipeline": "narrow", "resolution": 32}},
        "judges": {"own/judge": {"kind": "classifier", "path": "judge"}},
        "concepts": {
            "own/glass": {
                "kind": "object",
                "names": ["glass"],
                "prompts": [prompt, "a {concept}", "a {concept}" + " very" * 100],
                "labels": {"own/judge": ["egg timer"]},
            }
        },
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.fixture(scope="module")
def found(catalogue: Path) -> dict[str, Any]:
    return check([catalogue])


def test_each_model_is_told_its_own_fault(found: dict[str, Any]) -> None:
    checked = {each["name"]: {problem["reason"] for problem in each["problems"]} for each in found["models"]}
    assert checked == REASONS


def test_faults_of_the_catalogue_stand_by_file_and_key(found: dict[str, Any]) -> None:
    assert {(each["place"], each["reason"]) for each in found["problems"]} == {
        ("own.yaml: concepts.own/glass.labels.own/judge", "LABEL_UNKNOWN"),
        ("own.yaml: concepts.own/glass.prompts.0", "PROMPT_CUT"),
    }
    # The third prompt is cut behind its name, which is worth knowing.
    (note,) = [each for each in found["notes"] if each["reason"] == "PROMPT_CUT"]
    assert note["place"] == "own.yaml: concepts.own/glass.prompts"


def test_the_parts_are_those_that_diffusers_loads(found: dict[str, Any]) -> None:
    plain = next(each for each in found["models"] if each["name"] == "own/plain")
    loaded = {
        "unet": UNet2DConditionModel.from_pretrained(REFERENCE / "unet"),
        "vae": AutoencoderKL.from_pretrained(REFERENCE / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(REFERENCE / "text_encoder"),
    }
    assert {part["component"]: int(part["parameters"]) for part in plain["parts"]} == {
        part: sum(each.numel() for each in module.parameters()) for part, module in loaded.items()
    }
    whole = next(each for each in plain["memory"] if each["dtype"] == "float32")
    assert int(whole["weight_bytes"]) == 4 * sum(int(part["parameters"]) for part in plain["parts"])


def test_named_models_alone_are_checked(catalogue: Path) -> None:
    assert [each["name"] for each in check([catalogue], ["own/bin"])["models"]] == ["own/bin"]
    with pytest.raises(ValueError, match="there is no model 'own/bim'; did you mean 'own/bin'"):
        check([catalogue], ["own/bim"])


def test_weights_are_read_if_asked(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "base")
    whole = load_file(EMBEDDED.parent / "uce" / "unet.safetensors")
    name = next(key for key, tensor in whole.items() if tensor.is_floating_point())
    whole[name].view(-1)[-1] = float("nan")
    save_file(whole, tmp_path / "unet.safetensors")
    layer = next(key for key in whole if key.endswith("attn2.to_k.weight"))
    factors = {"A": torch.full((1, whole[layer].shape[1]), torch.inf), "B": torch.ones(whole[layer].shape[0], 1)}
    lora = {f"unet.{layer.removesuffix('.weight')}.lora_{letter}.weight": each for letter, each in factors.items()}
    save_file(lora, tmp_path / "lora.safetensors")
    models = {
        "own/base": {"pipeline": "base", "resolution": 32},
        "own/nan": {"base": "own/base", "unet": "unet.safetensors"},
        "own/lora": {"base": "own/base", "lora": "lora.safetensors"},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    unread, read = check([path]), check([path], weights=True)
    assert (unread["weights_read"], read["weights_read"]) == (False, True)
    assert not any(each["problems"] for each in unread["models"])
    told = {each["name"]: [problem["description"] for problem in each["problems"]] for each in read["models"]}
    assert told == {
        "own/base": [],
        "own/nan": [f"{name!r} of the unet holds NaN or infinity (found unet.safetensors)"],
        "own/lora": told["own/lora"],
    }
    (said,) = told["own/lora"]
    assert said.endswith("holds NaN or infinity (found lora.safetensors)")


def test_a_catalogue_that_cannot_be_read_is_all_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("models: {own/x: {base: nothing}}\nconcepts: {Van Gogh: {kind: style, names: [x]}}")
    found = check([file])
    assert found["models"] == []
    assert [each["place"] for each in found["problems"]] == ["wrong.yaml: concepts.Van Gogh"]


@pytest.mark.parametrize(("cards", "fits"), [([24.0], True), ([0.001], False), ([24.0] * 3, True)])
def test_a_device_is_planned_for_or_said_to_be_too_small(catalogue: Path, cards: list[float], fits: bool) -> None:
    found = check([catalogue], ["own/plain"], cards)
    assert bool(found["device"]) == fits
    assert bool(found["device_problem"]) != fits
    if len(cards) > 1:
        assert "3 x a GPU with 24.0 GB free" in found["device"][0]
        assert "2 x 96 rows" in found["device"][1]


def test_the_settings_of_serve_hold(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CATALOGUES": json.dumps([str(catalogue)]),
        "DEVICE": "cpu",
        "DTYPE": "bfloat16",
        "BATCH_ROWS": "6",
    }.items():
        monkeypatch.setenv(f"UNERASE_SERVE_{name}", value)
    found = check([])
    assert {each["name"] for each in found["models"]} == REASONS.keys()
    assert found["device"][0].startswith("computing in bfloat16 on cpu: ")
    assert "6 rows" in found["device"][1]
    # A file that is given takes the place of the environment's, as for serve.
    other = catalogue.with_name("other.yaml")
    other.write_text("models: {own/other: {pipeline: plain, resolution: 32}}")
    assert [each["name"] for each in check([other])["models"]] == ["own/other"]
    monkeypatch.setenv("UNERASE_SERVE_DEVICE", "tpu")
    with pytest.raises(ValueError, match=r"^device: Input should be 'cpu' or 'cuda'$"):
        check([catalogue])


def test_a_device_that_is_set_must_be_there(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNERASE_SERVE_DEVICE", "cuda")
    monkeypatch.setenv("UNERASE_SERVE_GPU_MEMORY_GB", "0.001")
    found = check([catalogue], ["own/plain"])
    assert found["device"] == []
    assert found["device_problem"].startswith("device: ")


def test_a_process_of_its_own_finds_the_same(catalogue: Path, tmp_path: Path) -> None:
    expected = check_model(Catalogue.load([str(catalogue)]), "own/flow")
    store = str(tmp_path / "artifacts")
    assert check_in_process(RoomSettings(artifacts=store, catalogues=(catalogue,)), "own/flow") == expected
    assert isinstance(expected, ModelCheck)
    with pytest.raises(UnavailableError, match="without an answer"):
        check_in_process(RoomSettings(artifacts=store, catalogues=(catalogue.with_name("none.yaml"),)), "own/flow")


def test_what_models_share_is_read_once(tmp_path: Path) -> None:
    """A catalogue may hold thousands of changes of one base."""
    shutil.copytree(REFERENCE, tmp_path / "base")
    shutil.copytree(EMBEDDED.parent / "uce", tmp_path / "uce")
    changed = {"base": "own/base", "unet": "uce/unet.safetensors"}
    models = {"own/base": {"pipeline": "base", "resolution": 32}, "own/one": changed, "own/two": changed}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    read, shared = Catalogue.load([str(path)]), SharedFindings()
    one = check_model(read, "own/one", shared)
    assert not one.problems
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    (tmp_path / "uce").rename(tmp_path / "other")
    two = check_model(read, "own/two", shared)
    one.name = two.name
    assert two == one
    assert check_model(read, "own/two").problems


def test_a_model_is_told_the_same_among_others(catalogue: Path) -> None:
    read, shared = Catalogue.load([str(catalogue)]), SharedFindings()
    for name in [*read.models, *read.models]:
        assert check_model(read, name, shared) == check_model(read, name)
