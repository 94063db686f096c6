"""Files as the authors of erasures publish them: each is recognised by its names, and comes out as what it holds.

The names are those of the published code: ESD, UCE, Concept Ablation, Custom Diffusion, MACE, AdvUnlearn, SalUn, LECO,
SPM, PEFT, LyCORIS and libraries of moving averages.
"""

import argparse
import datetime
import json
import uuid
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.importing import compvis_owners, imported, reference, saved, unet_weights
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.diffusion.loading import load_model
from unerase_backend.importing.command import Request, import_file
from unerase_backend.importing.compvis import unet_name
from unerase_backend.runtime.errors import UnsafeModelError

PART = unet_weights("testbed/esd-x")
WHOLE = unet_weights() | PART
WORDS = load_file(reference() / "text_encoder" / "model.safetensors")
OLD = {f"text_model.{key}": tensor for key, tensor in WORDS.items()}
LAYER = min(PART).removesuffix(".weight")
DOWN, UP = torch.ones(2, PART[f"{LAYER}.weight"].shape[1]), torch.ones(len(PART[f"{LAYER}.weight"]), 2)
FLAT = f"lora_unet_{LAYER.replace('.', '_')}"
KOHYA = {f"{FLAT}.lora_down.weight": DOWN, f"{FLAT}.lora_up.weight": UP, f"{FLAT}.alpha": torch.tensor(1.0)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def by_layer(state: dict[str, Tensor], prefix: str = "") -> dict[str, dict[str, Tensor]]:
    """The state of each layer by itself, as ESD's FineTunedModel stores the layers that it changed."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        owner, _, kind = key.rpartition(".")
        layers.setdefault(prefix + owner, {})[kind] = tensor
    return layers


def compvis() -> dict[str, Tensor]:
    """The whole UNet by CompVis' names, in a checkpoint with its schedule."""
    config = json.loads((reference() / "unet" / "config.json").read_text())
    stored = {"betas": torch.zeros(1000)}
    for owner in compvis_owners(config):
        for name in _of_attention(owner) if owner.endswith("ATTENTION") else [owner]:
            for kind in ("weight", "bias"):
                key = unet_name(f"{name}.{kind}", config["layers_per_block"])
                if key in WHOLE:
                    stored[f"model.diffusion_model.{name}.{kind}"] = WHOLE[key]
    return stored


def _of_attention(owner: str) -> list[str]:
    block = "transformer_blocks.0"
    inner = [f"{block}.attn{n}.{each}" for n in (1, 2) for each in ("to_q", "to_k", "to_v", "to_out.0")]
    inner += [f"{block}.norm{n}" for n in (1, 2, 3)] + [f"{block}.ff.net.{each}" for each in ("0.proj", "2")]
    return [f"{owner.removesuffix('.ATTENTION')}.{each}" for each in ("norm", "proj_in", "proj_out", *inner)]


UNETS: dict[str, tuple[Callable[[], Any], dict[str, Tensor]]] = {
    "diffusers-hourglass-ESDx1-UNET.pt": (lambda: PART, PART),
    "diffusers-hourglass-ESDu1-UNET.pt": (lambda: WHOLE, WHOLE),
    "esd-hourglass_from_hourglass-xattn_1-epochs_200.pt": (lambda: by_layer(PART), PART),
    "esd-hourglass-full.pt": (lambda: by_layer(WHOLE), WHOLE),
    "esd-one-layer.pt": (lambda: by_layer({f"{LAYER}.weight": PART[f"{LAYER}.weight"]}), {}),
    "esd-of-a-pipeline.pt": (lambda: by_layer(PART, "unet."), PART),
    "erased-hourglass-towards_uncond-preserve_false-sd_1_4-method_tensor.pt": (lambda: WHOLE, WHOLE),
    "delta.bin": (lambda: {"unet": PART}, PART),
    "compvis-cl-mask-method_full-lr_1e-05.pt": (compvis, WHOLE),
    "averages-beside.pt": (lambda: WHOLE | {f"ema_model.{key}": tensor + 1 for key, tensor in WHOLE.items()}, WHOLE),
    "averages-of-ema-pytorch.pt": (
        lambda: (
            {"initted": torch.tensor(True), "step": torch.tensor(3)}
            | {f"online_model.{key}": tensor for key, tensor in WHOLE.items()}
            | {f"ema_model.{key}": tensor + 1 for key, tensor in WHOLE.items()}
        ),
        WHOLE,
    ),
    "averages-alone.pt": (lambda: {f"ema_model.{key}": tensor for key, tensor in WHOLE.items()}, WHOLE),
    "averages-by-name.pt": (lambda: {"model": WHOLE, "ema_model": PART}, WHOLE),
    "lightning.ckpt": (lambda: {"state_dict": {f"model.{key}": each for key, each in WHOLE.items()}}, WHOLE),
}


@pytest.mark.parametrize("name", UNETS)
def test_a_published_unet_is_what_it_was(tmp_path: Path, name: str) -> None:
    content, expected = UNETS[name]
    result = imported(saved(tmp_path / name, content()), base=reference())
    assert same(result.files["unet"], expected or {f"{LAYER}.weight": PART[f"{LAYER}.weight"]})
    assert name.startswith("averages") == any("moving averages" in note for note in result.notes)


def test_averages_are_taken_if_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"model": WHOLE, "ema_model": PART})
    assert same(imported(path, select="ema_model").files["unet"], PART)


def test_averages_that_do_not_say_their_layers_are_refused(tmp_path: Path) -> None:
    stored = {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in WHOLE.items()}
    with pytest.raises(UnsafeModelError, match=r"moving averages alone \(model_ema\).*state_dict"):
        imported(saved(tmp_path / "x.ckpt", stored | {"model_ema.decay": torch.tensor(0.9)}))


ENCODERS: dict[str, dict[str, Any]] = {
    "TextEncoder-text_encoder_full-epoch_999.pt": OLD,
    "TextEncoder-of-a-wrapper.pt": {f"text_encoder.{key}": tensor for key, tensor in OLD.items()},
    "delta-of-embeddings.bin": {"unet": {}, "text_encoder": OLD},
    "with-projection.bin": OLD | {"text_projection.weight": torch.zeros(64, 64)},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_published_text_encoder_is_what_it_was(tmp_path: Path, name: str) -> None:
    result = imported(saved(tmp_path / name, ENCODERS[name]), base=reference())
    assert same(result.files["text_encoder"], WORDS)
    assert any("text_projection" in note for note in result.notes) == ("projection" in name)


def test_a_projection_beside_a_text_encoder_is_left_out_of_a_check_and_a_load(tmp_path: Path) -> None:
    save_file(OLD | {"text_projection.weight": torch.zeros(64, 64)}, tmp_path / "words.safetensors")
    entry = {"base": "testbed/reference", "text_encoder": "words.safetensors"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"models": {"own/projected": entry}}))
    read = Catalogue.load([str(tmp_path / "own.yaml")])
    found = check_model(read, "own/projected")
    assert not found.problems
    assert any("text_projection.weight of words.safetensors is not used" in note for note in found.notes)
    loaded = load_model(read, "own/projected", torch.device("cpu"), torch.float32)
    state = loaded.text_encoder.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in WORDS.items())


BY_PEFT = {
    "a pipeline's folder": f"unet.base_model.model.{LAYER}.lora_{{}}.weight",
    "a pipeline in PEFT": f"base_model.model.unet.{LAYER}.lora_{{}}.weight",
    "an adapter by name": f"unet.base_model.model.{LAYER}.lora_{{}}.default.weight",
}


@pytest.mark.parametrize("form", BY_PEFT)
def test_peft_in_a_pipeline_keeps_its_alpha(tmp_path: Path, form: str) -> None:
    stored = {BY_PEFT[form].format("A"): DOWN, BY_PEFT[form].format("B"): UP}
    path = saved(tmp_path / "adapter_model.bin", stored)
    found = imported(path, base=reference(), beside=json.dumps({"lora_alpha": 5})).files["lora"]
    names = {f"unet.{LAYER}.lora_A.weight": DOWN, f"unet.{LAYER}.lora_B.weight": UP}
    assert same(found, names | {f"unet.{LAYER}.alpha": torch.tensor(5.0)})
    with pytest.raises(UnsafeModelError, match=r"adapter_config\.json"):
        imported(path, base=reference())


@pytest.mark.parametrize("name", ["hourglass_last.safetensors", "leco.safetensors", "pytorch_lora_weights.bin"])
def test_adapters_of_spm_leco_and_mace_are_loras(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("pytorch"):
        owner, _, layer = LAYER.rpartition(".")
        processor = f"unet.{owner}.processor.{layer}_lora"
        saved(path, {f"{processor}.down.weight": DOWN, f"{processor}.up.weight": UP})
    else:
        save_file(dict(KOHYA), path, {"prompts": "hourglass", "rank": "2", "alpha": "1.0"})
    found = imported(path, base=reference()).files["lora"]
    assert torch.equal(found[f"unet.{LAYER}.lora_A.weight"], DOWN)
    assert torch.equal(found[f"unet.{LAYER}.lora_B.weight"], UP)


def test_the_factor_of_lycoris_is_multiplied_in(tmp_path: Path) -> None:
    path = saved(tmp_path / "locon.pt", KOHYA | {f"{FLAT}.scalar": torch.tensor([0.5])})
    result = imported(path, base=reference())
    assert torch.equal(result.files["lora"][f"unet.{LAYER}.lora_B.weight"], UP * 0.5)
    assert "scalar" in result.notes[0]
    with pytest.raises(UnsafeModelError, match="no single factor"):
        imported(saved(tmp_path / "x.pt", KOHYA | {f"{FLAT}.scalar": torch.ones(2)}))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("key", ["modifier_token", "modifier_vec"])
def test_custom_diffusion_changes_the_unet_and_learns_words(tmp_path: Path, key: str) -> None:
    words = {"<new1>": torch.arange(64.0), "<new2>": torch.ones(64)}
    path = saved(tmp_path / "delta.bin", {"unet": PART, key: words})
    result = import_file(Request(path, tmp_path / "out", base="testbed/reference"))
    entry = yaml.safe_load(result.entry)["models"]["delta"]
    assert [each["token"] for each in entry["embedding"]] == list(words)
    read = Catalogue.load([str(tmp_path / "out" / "delta.yaml")])
    loaded = load_model(read, "delta", torch.device("cpu"), torch.float32)
    state, rows = loaded.denoiser.state_dict(), loaded.text_encoder.get_input_embeddings().weight
    assert all(torch.equal(state[name], tensor) for name, tensor in PART.items())
    for word, row in words.items():
        assert torch.equal(rows[loaded.tokens_of(word)], row[None])
    with pytest.raises(UnsafeModelError, match="--token names one"):
        imported(path, token="<mine>")
    alone = imported(saved(tmp_path / "words.bin", {"unet": {}, key: {"<new1>": words["<new1>"]}}), token="<mine>")
    assert same(alone.files["embedding"], {"<mine>": words["<new1>"][None]})


BESIDE: dict[str, Any] = {
    "dates": [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), datetime.date(2024, 1, 2), datetime.timedelta(3)],
    "namespaces": {"args": SimpleNamespace(rate=1), "more": argparse.Namespace(path=Path("x"))},
    "NumPy": [np.float64(1), np.int64(1), np.bool_(True), np.arange(3), np.random.default_rng(1)],
    "numbers": [Decimal(1), Fraction(1, 2), 1j, range(3), slice(1), frozenset([1]), {2}],
    "others": [uuid.UUID(int=1), deque([torch.ones(1)]), Path("x"), torch.float16, torch.device("cpu")],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_a_trainer_leaves_beside_weights_is_dropped(tmp_path: Path, beside: str, legacy: bool) -> None:
    path = tmp_path / "last.ckpt"
    content = {"state_dict": PART, "beside": BESIDE[beside]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert same(imported(path).files["unet"], PART)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_not_dropped_is_named_with_what_to_do(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "last.ckpt"
    content = {"state_dict": PART, "callback": ValueError("x")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeModelError, match=r"asks for .*ValueError.*save the weights alone"):
        imported(path)
