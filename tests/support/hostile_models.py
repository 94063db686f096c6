"""Folders of models that mean harm, or are broken in ways that could do some, each with the reason that refuses it.

A folder holds the model's pipeline in `pipeline`.
"""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], dict[str, str]]
WEIGHTS = "pipeline/unet/diffusion_pytorch_model.safetensors"
KEY = "conv_in.weight"
TRIPPED: list[str] = []

HOSTILE: dict[str, tuple[Spoil, str]] = {}


class Tripwire:
    """Says so where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _trip, ("unpickled",)


def _trip(word: str) -> None:
    TRIPPED.append(word)


def hostile(reason: str) -> Callable[[Spoil], Spoil]:
    """Register a way to spoil the folder; it returns what replaces parts of the model."""

    def register(spoil: Spoil) -> Spoil:
        HOSTILE[spoil.__name__] = (spoil, reason)
        return spoil

    return register


def safetensors(header: dict[str, object], data: bytes = b"", length: int | None = None) -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [8, 4, 3, 3], "data_offsets": [start, end]}


SIZE = 8 * 4 * 3 * 3 * 4


@hostile("WEIGHTS_NOT_SAFETENSORS")
def a_pickle(folder: Path) -> dict[str, str]:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).with_suffix(".bin").write_bytes(pickle.dumps(Tripwire()))
    return {}


@hostile("WEIGHTS_UNREADABLE")
def a_pickle_named_safetensors(folder: Path) -> dict[str, str]:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Tripwire()))
    return {}


@hostile("WEIGHTS_UNREADABLE")
def a_pickle_that_replaces(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(pickle.dumps(Tripwire()))
    return {"unet": "edit.safetensors"}


@hostile("INVALID_REQUEST")
def a_pickle_by_its_name(folder: Path) -> dict[str, str]:
    (folder / "edit.bin").write_bytes(pickle.dumps(Tripwire()))
    return {"unet": "edit.bin"}


@hostile("WEIGHTS_UNREADABLE")
def a_zip_named_safetensors(folder: Path) -> dict[str, str]:
    with zipfile.ZipFile(folder / "edit.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Tripwire()))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def a_checkpoint_of_torch_named_safetensors(folder: Path) -> dict[str, str]:
    torch.save({KEY: torch.zeros(8, 4, 3, 3)}, folder / "edit.safetensors")
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def a_header_longer_than_the_file(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(safetensors({KEY: tensor(0, SIZE)}, bytes(SIZE), length=1 << 40))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def a_header_of_the_greatest_length(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(safetensors({KEY: tensor(0, SIZE)}, bytes(SIZE), length=(1 << 64) - 1))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def a_header_that_is_no_json(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(struct.pack("<Q", 4) + b"\xff\xfe{}")
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def offsets_that_overlap(folder: Path) -> dict[str, str]:
    header = {KEY: tensor(0, SIZE), "conv_out.weight": tensor(SIZE // 2, SIZE + SIZE // 2)}
    (folder / "edit.safetensors").write_bytes(safetensors(header, bytes(2 * SIZE)))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def offsets_beyond_the_end(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(safetensors({KEY: tensor(1 << 30, (1 << 30) + SIZE)}, bytes(SIZE)))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def offsets_that_do_not_fit_the_shape(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(safetensors({KEY: tensor(0, SIZE, [1 << 40, 1 << 40])}, bytes(SIZE)))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def a_type_that_nobody_knows(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(safetensors({KEY: tensor(0, SIZE, dtype="OBJECT")}, bytes(SIZE)))
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def an_empty_file(folder: Path) -> dict[str, str]:
    (folder / "edit.safetensors").write_bytes(b"")
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_UNREADABLE")
def weights_that_are_cut_off(folder: Path) -> dict[str, str]:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])
    return {}


@hostile("PATH_ESCAPES")
def a_link_out_of_the_folder(folder: Path) -> dict[str, str]:
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / WEIGHTS, outside)
    (folder / WEIGHTS).symlink_to(outside)
    return {}


@hostile("PATH_ESCAPES")
def a_whole_part_behind_a_link(folder: Path) -> dict[str, str]:
    outside = folder.parent / "outside"
    shutil.move(folder / "pipeline" / "vae", outside)
    (folder / "pipeline" / "vae").symlink_to(outside)
    return {}


@hostile("INVALID_REQUEST")
def a_replacement_behind_a_link(folder: Path) -> dict[str, str]:
    outside = folder.parent / "outside.safetensors"
    save_file({KEY: torch.zeros(8, 4, 3, 3)}, outside)
    (folder / "edit.safetensors").symlink_to(outside)
    return {"unet": "edit.safetensors"}


@hostile("INVALID_REQUEST")
def a_path_upwards(folder: Path) -> dict[str, str]:
    save_file({KEY: torch.zeros(8, 4, 3, 3)}, folder.parent / "edit.safetensors")
    return {"unet": "../edit.safetensors"}


@hostile("INVALID_REQUEST")
def an_absolute_path(folder: Path) -> dict[str, str]:
    save_file({KEY: torch.zeros(8, 4, 3, 3)}, folder / "edit.safetensors")
    return {"unet": str(folder / "edit.safetensors")}


@hostile("INVALID_REQUEST")
def a_name_with_a_zero(folder: Path) -> dict[str, str]:
    save_file({KEY: torch.zeros(8, 4, 3, 3)}, folder / "edit.safetensors")
    return {"unet": '"edit.safetensors\\0.png"'}


@hostile("INVALID_REQUEST")
def a_name_that_reads_backwards(folder: Path) -> dict[str, str]:
    # RIGHT-TO-LEFT OVERRIDE shows it as one that ends in .safetensors to whoever reads the catalogue
    name = "edit\u202esrosnetefas.bin"
    (folder / name).write_bytes(pickle.dumps(Tripwire()))
    return {"unet": f'"{name}"'}


@hostile("INVALID_REQUEST")
def a_name_with_a_letter_that_looks_alike(folder: Path) -> dict[str, str]:
    save_file({KEY: torch.zeros(8, 4, 3, 3)}, folder / "edit.safetensors")
    return {"unet": '"\u0435dit.safetensors"'}


@hostile("INVALID_REQUEST")
def a_fifo(folder: Path) -> dict[str, str]:
    os.mkfifo(folder / "edit.safetensors")
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_INCOMPLETE")
def a_tensor_that_is_missing(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / WEIGHTS)
    del tensors[KEY]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return {}


@hostile("WEIGHTS_UNKNOWN_TENSOR")
def a_tensor_too_many(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / WEIGHTS) | {"hidden.payload": torch.zeros(4)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return {}


@hostile("WEIGHTS_UNKNOWN_TENSOR")
def a_replacing_tensor_too_many(folder: Path) -> dict[str, str]:
    save_file({KEY: torch.zeros(8, 4, 3, 3), "hidden.payload": torch.zeros(4)}, folder / "edit.safetensors")
    return {"unet": "edit.safetensors"}


@hostile("WEIGHTS_NOT_FINITE")
def a_weight_that_is_nan(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / WEIGHTS)
    tensors[KEY].view(-1)[5] = float("nan")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return {}


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@hostile("MODEL_NAMES_CODE")
def a_config_that_names_remote_code(folder: Path) -> dict[str, str]:
    _edit(folder / "pipeline" / "text_encoder" / "config.json", auto_map={"AutoModel": "evil--repo.modeling.Evil"})
    return {}


@hostile("MODEL_NAMES_CODE")
def a_tokenizer_that_names_remote_code(folder: Path) -> dict[str, str]:
    _edit(
        folder / "pipeline" / "tokenizer" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
    )
    return {}


@hostile("MODEL_NAMES_CODE")
def an_index_that_names_a_module(folder: Path) -> dict[str, str]:
    (folder / "pipeline" / "evil.py").write_text("raise SystemExit")
    _edit(folder / "pipeline" / "model_index.json", text_encoder=["evil", "CLIPTextModel"])
    return {}


@hostile("MODEL_UNSUPPORTED")
def an_index_of_another_class(folder: Path) -> dict[str, str]:
    _edit(folder / "pipeline" / "model_index.json", unet=["diffusers", "UNet3DConditionModel"])
    return {}


@hostile("MODEL_NAMES_CODE")
def an_index_whose_class_is_a_file(folder: Path) -> dict[str, str]:
    (folder / "pipeline" / "pipeline.py").write_text("raise SystemExit")
    _edit(folder / "pipeline" / "model_index.json", _class_name=["pipeline", "Evil"])
    return {}


@hostile("MODEL_INCOMPLETE")
def a_configuration_that_is_nested_too_deep(folder: Path) -> dict[str, str]:
    (folder / "pipeline" / "vae" / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    return {}


@hostile("MODEL_UNSUPPORTED")
def a_configuration_of_a_million_layers(folder: Path) -> dict[str, str]:
    _edit(folder / "pipeline" / "unet" / "config.json", layers_per_block=1_000_000)
    return {}


@hostile("MODEL_UNSUPPORTED")
def a_configuration_of_a_width_beyond_memory(folder: Path) -> dict[str, str]:
    _edit(folder / "pipeline" / "text_encoder" / "config.json", hidden_size=1 << 60, vocab_size=1 << 60)
    return {}


@hostile("MODEL_UNSUPPORTED")
def a_configuration_of_words_for_numbers(folder: Path) -> dict[str, str]:
    _edit(folder / "pipeline" / "unet" / "config.json", block_out_channels="../../etc/passwd")
    return {}


@hostile("WEIGHTS_INDEX")
def an_index_of_shards_that_leads_out(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS
    path.rename(folder / "outside.safetensors")
    index = {"weight_map": {KEY: "../../outside.safetensors"}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    return {}


@hostile("PATH_ESCAPES")
def a_shard_behind_a_link(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS
    shutil.move(path, folder.parent / "outside.safetensors")
    path.with_name("shard.safetensors").symlink_to(folder.parent / "outside.safetensors")
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": {KEY: "shard.safetensors"}}))
    return {}


@hostile("MODEL_INCOMPLETE")
def an_index_that_is_no_object(folder: Path) -> dict[str, str]:
    (folder / "pipeline" / "model_index.json").write_text("[1, 2")
    return {}
