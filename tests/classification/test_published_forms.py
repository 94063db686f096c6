"""CLIP and ResNet judges in the forms that are published: of transformers 4, variants, shards; damage is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unerase_backend.catalogue.entries import JudgeEntry
from unerase_backend.classification.registry import Features, load_judge
from unerase_backend.runtime.errors import UnsafeModelError

KINDS = {"clip": "clip", "resnet": "classifier"}
Change = Callable[[Path], None]


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def seen(kind: str, folder: Path, pictures: np.ndarray) -> Features:
    entry = JudgeEntry.model_construct(kind=kind, path=folder, hub=None, options={})
    judge = load_judge("own/judge", entry, torch.device("cpu"), torch.float32, 8)
    return judge.look(list(pictures))


def as_transformers_4(folder: Path) -> None:
    """Buffers among the weights, the older key of the number type, and the towers' configurations twice."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.27.0.dev0"
    if config["model_type"] == "clip":
        for tower, count in (("text", 16), ("vision", 17)):
            tensors[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
            config[f"{tower}_config_dict"] = None
            config[f"{tower}_config"].pop("dtype", None)
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def as_variant(folder: Path) -> None:
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in _moved(folder).items()}
    save_file(tensors, folder / "model.fp16.safetensors", metadata={"format": "pt"})


def as_shards(folder: Path) -> None:
    tensors = _moved(folder)
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for shard in set(where.values()):
        part = {name: tensor for name, tensor in tensors.items() if where[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _moved(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return tensors


def rounded(folder: Path) -> None:
    """The weights as 16 bits hold them, in 32."""
    tensors = {
        name: tensor.half().float() if tensor.is_floating_point() else tensor for name, tensor in _moved(folder).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize("name", ["clip", "resnet"])
@pytest.mark.parametrize(
    ("change", "same_as"), [(as_transformers_4, nothing), (as_shards, nothing), (as_variant, rounded)]
)
def test_the_form_changes_no_bit(
    folders: dict[str, Path], tmp_path: Path, pictures: np.ndarray, name: str, change: Change, same_as: Change
) -> None:
    folder, plain = copied(folders[name], tmp_path / "judge"), copied(folders[name], tmp_path / "plain")
    change(folder)
    same_as(plain)
    assert np.array_equal(seen(KINDS[name], folder, pictures), seen(KINDS[name], plain, pictures))


def shard_missing(folder: Path) -> None:
    as_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save(_moved(folder), folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def of_another_model(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["clip", "resnet"])
@pytest.mark.parametrize(
    ("change", "reason", "named"),
    [
        (shard_missing, "WEIGHTS_SHARD_MISSING", "model-00002-of-00002.safetensors"),
        (pickled, "WEIGHTS_NOT_SAFETENSORS", "pytorch_model.bin"),
        (cut_off, "WEIGHTS_UNREADABLE", "model.safetensors"),
        (of_another_model, "WEIGHTS_INCOMPLETE", "model.safetensors"),
    ],
)
def test_damage_is_told_with_the_judge_and_the_file(
    folders: dict[str, Path], tmp_path: Path, pictures: np.ndarray, name: str, change: Change, reason: str, named: str
) -> None:
    folder = copied(folders[name], tmp_path / "judge")
    change(folder)
    with pytest.raises(UnsafeModelError) as caught:
        seen(KINDS[name], folder, pictures)
    assert caught.value.reason == reason
    assert caught.value.message.startswith("own/judge: ")
    assert named in caught.value.message
    assert str(tmp_path) not in caught.value.message
