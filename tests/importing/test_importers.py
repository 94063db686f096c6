"""Each kind of file in the forms that programs write it, and what of it is refused."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from support.importing import imported, reference, saved, unet_weights
from unerase_backend.catalogue import lora
from unerase_backend.importing.command import KINDS
from unerase_backend.importing.registry import importers
from unerase_backend.runtime.errors import UnsafeModelError

ESD = unet_weights("testbed/esd-x")
LAYER = next(iter(sorted(ESD))).removesuffix(".weight")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}},
    "model": lambda state: {"model": state, "args": {"lr": 1e-5}},
    "module in model": lambda state: {"model": {"module": state}},
    "unet": lambda state: {"unet": state},
    "DataParallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
    "unet prefix": lambda state: {f"unet.{key}": tensor for key, tensor in state.items()},
    "DataParallel in unet": lambda state: {f"unet.module.{key}": tensor for key, tensor in state.items()},
    "Concept Ablation": lambda state: {"unet": state, "modifier_token": {}},
    "a step and a generator's state": lambda state: {
        "model": state,
        "step": torch.tensor(3),
        "rng": {"torch": torch.zeros(5, dtype=torch.uint8)},
        "scaler": {"_growth_tracker": torch.tensor(0)},
    },
    "parameters": lambda state: {key: nn.Parameter(tensor) for key, tensor in state.items()},
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_unet_is_found_however_it_is_wrapped(tmp_path: Path, form: str, legacy: bool) -> None:
    path = tmp_path / "esd.pt"
    torch.save(WRAPPED[form](ESD), path, _use_new_zipfile_serialization=not legacy)
    assert same(imported(path).files["unet"], ESD)


def test_one_of_several_sets_of_weights_is_chosen(tmp_path: Path) -> None:
    other = {key: tensor + 1 for key, tensor in ESD.items()}
    path = saved(tmp_path / "x.pt", {"before": other, "behind": ESD})
    with pytest.raises(UnsafeModelError, match=r"'before', 'behind'.*--key"):
        imported(path)
    assert same(imported(path, select="behind").files["unet"], ESD)
    with pytest.raises(UnsafeModelError, match="'nothing'"):
        imported(path, select="nothing")


def test_what_training_leaves_beside_weights_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Lightning's checkpoints: classes as keys, attributes in mappings of their own, NumPy's scalars."""
    lightning = {
        "pytorch_lightning.callbacks.model_checkpoint": type("ModelCheckpoint", (), {}),
        "pytorch_lightning.utilities.parsing": type("AttributeDict", (dict,), {}),
    }
    for name, kind in lightning.items():
        kind.__module__ = name
        parents = name.split(".")
        for depth in range(1, len(parents) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parents[:depth]), ModuleType(parents[depth - 1]))
        monkeypatch.setattr(sys.modules[name], kind.__name__, kind, raising=False)
    callback, attributes = lightning.values()
    content = {
        "state_dict": ESD,
        "callbacks": {callback: {"best": np.float32(1.0), "seen": np.zeros(3)}},
        "hyper_parameters": attributes(rate=1e-5, names=defaultdict(list, {"a": [1]})),
    }
    assert same(imported(saved(tmp_path / "last.ckpt", content)).files["unet"], ESD)


def test_a_unet_and_a_text_encoder_in_one_file(tmp_path: Path) -> None:
    words = load_file(reference() / "text_encoder" / "model.safetensors")
    old = {f"text_model.{key}": tensor for key, tensor in words.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    found = imported(saved(tmp_path / "x.pt", {"unet": ESD, "text_encoder": old}), base=reference()).files
    assert same(found["unet"], ESD)
    assert same(found["text_encoder"], words)
    for prefix in ("", "text_encoder.", "module.", "transformer.", "cond_stage_model.transformer."):
        stored = {f"{prefix}{key}": tensor for key, tensor in old.items()}
        assert same(imported(saved(tmp_path / "x.bin", stored), base=reference()).files["text_encoder"], words)


def test_layers_stored_as_convolutions_of_one_pixel_are_the_models(tmp_path: Path) -> None:
    stored = {key: tensor[..., None, None] if tensor.dim() == 2 else tensor for key, tensor in ESD.items()}
    found = imported(saved(tmp_path / "x.pt", stored), base=reference()).files["unet"]
    assert all(torch.equal(found[key].reshape(tensor.shape), tensor) for key, tensor in ESD.items())


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (ESD, "lora", "--as unet, not --as lora"),
        ({"conv_in.wait": torch.zeros(2)}, "unet", r"no tensor 'conv_in\.wait'"),
        ({"conv_in.weight": torch.zeros(2)}, "unet", r"'conv_in\.weight' of the unet has the shape"),
        ({"hidden.payload": torch.zeros(2)}, "unet", "no layout that is known"),
        ({"unet.conv_in.bias": torch.zeros(32), "hidden.payload": torch.zeros(2)}, "unet", "'hidden.payload'"),
        ({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, "lora", "LyCORIS"),
        ([torch.zeros(2)], "unet", "no tensors by name"),
        ({"epoch": 3}, "unet", "no tensors by name"),
        ({3: torch.zeros(2)}, "unet", "name is no text"),
        ({"conv_in\n.weight": torch.zeros(2)}, "unet", "name is no text"),
    ],
)
def test_what_is_no_unet_of_this_model_is_refused(tmp_path: Path, content: Any, kind: str, words: str) -> None:
    with pytest.raises(UnsafeModelError, match=words):
        imported(saved(tmp_path / "x.pt", content), kind, reference())


DOWN, UP = torch.ones(2, ESD[f"{LAYER}.weight"].shape[1]), torch.ones(len(ESD[f"{LAYER}.weight"]), 2)
FLAT = f"lora_unet_{LAYER.replace('.', '_')}"
DOTTED = {f"unet.{LAYER}.lora_A.weight": DOWN, f"unet.{LAYER}.lora_B.weight": UP}
LORAS: dict[str, tuple[dict[str, Tensor], float | None]] = {
    "PEFT": (DOTTED, None),
    "kohya": (
        {f"{FLAT}.lora_down.weight": DOWN, f"{FLAT}.lora_up.weight": UP, f"{FLAT}.alpha": torch.tensor(1.0)},
        1.0,
    ),
    "processors": (
        {
            LAYER.replace("attn2.to_k", f"attn2.processor.to_k_lora.{role}.weight"): tensor
            for role, tensor in (("down", DOWN), ("up", UP))
        },
        None,
    ),
    "diffusers": ({f"unet.{LAYER}.lora.down.weight": DOWN, f"unet.{LAYER}.lora.up.weight": UP}, None),
}


@pytest.mark.parametrize("layout", LORAS)
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_loras_get_one_layout(tmp_path: Path, layout: str, ending: str) -> None:
    stored, alpha = LORAS[layout]
    path = tmp_path / f"lora{ending}"
    (torch.save if ending == ".pt" else save_file)({key: tensor.clone() for key, tensor in stored.items()}, path)
    found = imported(path, base=reference()).files["lora"]
    given = {} if alpha is None else {f"unet.{LAYER}.alpha": torch.tensor(alpha)}
    assert same(found, DOTTED | given)
    # Without the architecture, the result is still a LoRA that the server reads.
    assert lora.parse_all(imported(path).files["lora"])


def test_a_lora_of_other_families_keeps_its_parts(tmp_path: Path) -> None:
    """kohya's names of SDXL's parts, dots unknown, and PEFT's own of a transformer."""
    stems = ("lora_unet_input_blocks_4_1_proj_in", "lora_te1_text_model_x", "lora_te2_text_model_x", "lora_te3_x")
    stored = {
        f"{stem}.{role}": each
        for stem in stems
        for role, each in zip(("lora_down.weight", "lora_up.weight"), (DOWN, UP), strict=True)
    }
    found = imported(saved(tmp_path / "xl.pt", stored)).files["lora"]
    parts = {key: (each.part, lora.flat(each.module)) for key, each in lora.parse_all(found).items()}
    assert {*parts.values()} == {
        ("unet", "input_blocks_4_1_proj_in"),
        ("text_encoder", "x"),
        ("text_encoder_2", "x"),
        ("text_encoder_3", "x"),
    }
    own = {
        f"transformer.base_model.model.blocks.0.to_q.lora_{letter}.weight": each
        for letter, each in (("A", DOWN), ("B", UP))
    }
    path = saved(tmp_path / "adapter_model.bin", own)
    found = imported(path, beside=json.dumps({"lora_alpha": 5})).files["lora"]
    assert {each.part for each in lora.parse_all(found).values()} == {"transformer"}
    assert float(found["transformer.blocks.0.to_q.alpha"]) == 5.0


def test_alphas_stand_beside_their_factors(tmp_path: Path) -> None:
    metadata = {lora.METADATA_KEY: json.dumps({"unet.lora_alpha": 8, "unet.alpha_pattern": {LAYER: 3}})}
    save_file({key: tensor.clone() for key, tensor in DOTTED.items()}, tmp_path / "lora.safetensors", metadata)
    found = imported(tmp_path / "lora.safetensors").files["lora"]
    assert float(found[f"unet.{LAYER}.alpha"]) == 3.0
    own = {f"base_model.model.{key.removeprefix('unet.')}": tensor for key, tensor in DOTTED.items()}
    path = saved(tmp_path / "adapter_model.bin", own)
    config = {"lora_alpha": 5, "alpha_pattern": {}}
    found = imported(path, beside=json.dumps(config)).files["lora"]
    assert float(found[f"unet.{LAYER}.alpha"]) == 5.0
    with pytest.raises(UnsafeModelError, match=r"adapter_config\.json"):
        imported(path)
    for change, words in (
        ({"use_dora": True}, "DoRA"),
        ({"alpha_pattern": {"to_(q|k)": 8}}, "by patterns"),
        ({"alpha_pattern": [8]}, "by patterns"),
        ({"lora_alpha": None}, "no number"),
    ):
        with pytest.raises(UnsafeModelError, match=rf"^adapter_config\.json .*{words}"):
            imported(path, beside=json.dumps(config | change))
    for broken in ("{", "[8]"):
        with pytest.raises(UnsafeModelError, match=r"^adapter_config\.json is not a JSON object"):
            imported(path, beside=broken)


def test_a_configuration_beside_another_file_is_not_read(tmp_path: Path) -> None:
    assert same(imported(saved(tmp_path / "esd.pt", ESD), beside="{").files["unet"], ESD)


def test_an_adapter_of_spm_is_a_lora_with_a_word_on_it(tmp_path: Path) -> None:
    stored = {key: tensor.clone() for key, tensor in LORAS["kohya"][0].items()}
    save_file(stored, tmp_path / "spm.safetensors", {"prompts": "van gogh", "rank": "1"})
    assert "prompts far from the concept" in imported(tmp_path / "spm.safetensors").notes[0]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"lora_unet_nowhere.lora_down.weight": DOWN, "lora_unet_nowhere.lora_up.weight": UP}, "'nowhere'"),
        ({**LORAS["kohya"][0], f"{FLAT}.lora_down.weight": DOWN[:, :-1]}, r"has the shape \(2, "),
        ({f"{FLAT}.lora_down.weight": DOWN}, "without the layer's factor 'up'"),
        ({key: tensor[:0] if "A" in key else tensor[:, :0] for key, tensor in DOTTED.items()}, "no common rank"),
        ({**LORAS["kohya"][0], f"{FLAT}.lora_up.weight": UP[:, :1]}, "no common rank"),
    ],
)
def test_a_lora_for_another_model_is_refused(tmp_path: Path, stored: dict[str, Tensor], words: str) -> None:
    with pytest.raises(UnsafeModelError, match=words):
        imported(saved(tmp_path / "x.pt", stored), base=reference())


WORD = torch.ones(2, 64)
A1111 = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": WORD}, "name": "glass", "step": 7}
EMBEDDINGS: dict[str, tuple[Any, str]] = {
    "A1111": (A1111, "glass"),
    "A1111, as it was": (A1111 | {"string_to_param": nn.ParameterDict({"*": nn.Parameter(WORD)})}, "glass"),
    "diffusers": ({"<glass>": WORD}, "<glass>"),
    "diffusers, one row": ({"<glass>": WORD[0]}, "<glass>"),
}


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_embeddings_come_out_by_their_word(tmp_path: Path, form: str) -> None:
    content, word = EMBEDDINGS[form]
    found = imported(saved(tmp_path / "e.pt", content), base=reference()).files["embedding"]
    assert found.keys() == {word}
    assert torch.equal(found[word], WORD[:1] if "row" in form else WORD)
    assert imported(tmp_path / "e.pt", token="<mine>").files["embedding"].keys() == {"<mine>"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"clip_l": WORD, "clip_g": WORD}, "Stable Diffusion XL"),
        ({"emb_params": WORD}, "--token"),
        ({"<a>": WORD, "<b>": WORD}, "2 embeddings"),
        ({"<a>": torch.zeros(2, 3, 4)}, r"\(2, 3, 4\)"),
        ({"<a>": torch.zeros(2, 63)}, "63 numbers"),
    ],
)
def test_a_bad_embedding_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UnsafeModelError, match=words):
        imported(saved(tmp_path / "e.pt", content), "embedding", reference())


def test_every_kind_has_its_importer() -> None:
    # An autoencoder comes only with a pipeline's folder.
    assert importers().keys() == {*KINDS, "vae"}
