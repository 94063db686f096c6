"""Weights in every form that people have, each read as diffusers and transformers read the plain files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from support.pipeline_parts import STEMS
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.runtime.errors import UnsafeModelError

Load = Callable[..., DiffusionModel]
Store = Callable[[Path], None]
State = dict[str, dict[str, Tensor]]
LIBRARY = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
FORMS: dict[str, Store] = {}


def form(store: Store) -> Store:
    """Register a form in which the same weights may be stored."""
    FORMS[store.__name__] = store
    return store


def whole(folder: Path, part: str, variant: str = "") -> Path:
    return folder / part / f"{STEMS[part]}{variant}.safetensors"


def rewrite(folder: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = whole(folder, part)
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path)


def spoil(path: Path) -> None:
    """Store other weights beside the right ones."""
    save_file({key: torch.zeros_like(tensor) for key, tensor in load_file(path).items()}, path)


@form
def plain(folder: Path) -> None:
    pass


@form
def fp16_alone(folder: Path) -> None:
    for part in STEMS:
        whole(folder, part).rename(whole(folder, part, ".fp16"))


@form
def bf16_beside_weights_without_averaging(folder: Path) -> None:
    for part in STEMS:
        save_file(load_file(whole(folder, part)), whole(folder, part, ".non_ema"))
        spoil(whole(folder, part, ".non_ema"))
        whole(folder, part).rename(whole(folder, part, ".bf16"))


@form
def weights_without_averaging_alone(folder: Path) -> None:
    whole(folder, "unet").rename(whole(folder, "unet", ".non_ema"))


@form
def variants_beside_the_plain_weights(folder: Path) -> None:
    for part in STEMS:
        for variant in (".bf16", ".fp16"):
            save_file(load_file(whole(folder, part)), whole(folder, part, variant))
            spoil(whole(folder, part, variant))


@form
def shards_of_the_libraries(folder: Path) -> None:
    for part, library in LIBRARY.items():
        module = library.from_pretrained(folder / part)
        whole(folder, part).unlink()
        module.save_pretrained(folder / part, max_shard_size="20KB")
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1


@form
def shards_of_a_variant(folder: Path) -> None:
    for part, library in LIBRARY.items():
        module = library.from_pretrained(folder / part)
        whole(folder, part).unlink()
        module.save_pretrained(folder / part, max_shard_size="20KB", variant="fp16")
        assert len(list((folder / part).glob("*fp16-*-of-*.safetensors"))) > 1


@form
def shards_beside_other_weights(folder: Path) -> None:
    """diffusers reads shards first, and transformers the whole file."""
    for part, library in LIBRARY.items():
        first = whole(folder, part).read_bytes()
        library.from_pretrained(folder / part).save_pretrained(folder / part, max_shard_size="20KB")
        whole(folder, part).write_bytes(first)
        for path in [whole(folder, part)] if part != "text_encoder" else (folder / part).glob("*-of-*.safetensors"):
            spoil(path)


@form
def an_index_left_over_beside_the_whole_file(folder: Path) -> None:
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@form
def a_text_encoder_of_transformers_4(folder: Path) -> None:
    def old(state: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = torch.arange(len(state["embeddings.position_embedding.weight"]))[None]
        named = {f"text_model.{key}": tensor for key, tensor in state.items()}
        return named | {"text_model.embeddings.position_ids": ids}

    rewrite(folder, "text_encoder", old)


def old_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        re.sub(
            r"(mid_block\.attentions\.0)\.(to_\w+(?:\.0)?)\.", lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", key
        ): tensor
        for key, tensor in state.items()
    }


@form
def an_autoencoder_of_diffusers_before_0_20(folder: Path) -> None:
    before = set(load_file(whole(folder, "vae")))
    rewrite(folder, "vae", old_attention)
    assert len(before - set(load_file(whole(folder, "vae")))) == 16


@form
def attention_as_convolutions_of_one_pixel(folder: Path) -> None:
    def convolved(state: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: tensor for key, tensor in state.items() if ".attentions." in key and tensor.dim() == 2}
        assert len(kept) == 8
        return state | {key: tensor[:, :, None, None] for key, tensor in kept.items()}

    rewrite(folder, "vae", lambda state: old_attention(convolved(state)))


@form
def projections_as_linear_layers(folder: Path) -> None:
    def linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: tensor for key, tensor in state.items() if re.search(r"\.proj_(in|out)\.weight$", key)}
        assert {tensor.dim() for tensor in kept.values()} == {4}
        return state | {key: tensor.flatten(1) for key, tensor in kept.items()}

    rewrite(folder, "unet", linear)


@form
def names_of_trainers(folder: Path) -> None:
    rewrite(folder, "unet", lambda state: {f"module.unet.{key}": tensor for key, tensor in state.items()})
    rewrite(folder, "vae", lambda state: {f"vae.{key}": tensor for key, tensor in state.items()})
    rewrite(folder, "text_encoder", lambda s: {f"text_encoder.text_model.{key}": tensor for key, tensor in s.items()})


@form
def double_precision(folder: Path) -> None:
    for part in STEMS:
        rewrite(folder, part, lambda state: {key: tensor.double() for key, tensor in state.items()})


def states(model: DiffusionModel) -> State:
    return {part: model.backbone.modules[part].state_dict() for part in STEMS}


def reference_states(folder: Path) -> State:
    return {part: library.from_pretrained(folder / part).state_dict() for part, library in LIBRARY.items()}


def assert_same_bits(one: State, other: State) -> None:
    for part in STEMS:
        assert set(one[part]) == set(other[part])
        for key, tensor in one[part].items():
            assert torch.equal(tensor, other[part][key]), (part, key)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_bits(tiny: Path, load_tiny: Load, name: str) -> None:
    expected = reference_states(tiny / "pipeline")
    FORMS[name](tiny / "pipeline")
    model = load_tiny()
    assert_same_bits(states(model), expected)
    positions = model.text_encoder.embeddings.position_ids
    assert torch.equal(positions, torch.arange(positions.shape[-1])[None])


def test_a_digest_covers_just_what_is_loaded(tiny: Path, load_tiny: Load) -> None:
    before = load_tiny().digest
    for part in STEMS:
        save_file({"other": torch.zeros(1)}, whole(tiny / "pipeline", part, ".fp16"))
        (tiny / "pipeline" / part / "notes.json").write_text("{}")
    an_index_left_over_beside_the_whole_file(tiny / "pipeline")
    assert load_tiny().digest == before
    rewrite(tiny / "pipeline", "vae", lambda state: {key: tensor + 1 for key, tensor in state.items()})
    assert load_tiny().digest != before


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_numbers_are_rounded_once(tiny: Path, load_tiny: Load, stored: torch.dtype, wanted: torch.dtype) -> None:
    rewrite(tiny / "pipeline", "unet", lambda state: {key: tensor.to(stored) for key, tensor in state.items()})
    load_tiny()
    model = load_model(Catalogue.load(embedded=tiny / "catalogue.yaml"), "base", torch.device("cpu"), wanted)
    expected = {key: tensor.to(wanted) for key, tensor in load_file(whole(tiny / "pipeline", "unet")).items()}
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.denoiser.state_dict().items())


def shards(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Store tensors in two files with their index; returns the index."""
    folder.mkdir()
    keys = sorted(tensors)
    names = {key: f"edit-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(keys)}
    for name in set(names.values()):
        save_file({key: tensors[key] for key in keys if names[key] == name}, folder / name)
    (folder / "edit.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder / "edit.safetensors.index.json"


def test_replacing_weights_may_be_shards(tiny: Path, load_tiny: Load) -> None:
    state = load_tiny().denoiser.state_dict()
    edited = {key: torch.randn(state[key].shape) for key in sorted(state)[::3]}
    save_file(edited, tiny / "edit.safetensors")
    expected = load_tiny(unet="edit.safetensors")
    index = shards(tiny / "edit", edited)
    loaded = load_tiny(unet="edit/edit.safetensors.index.json")
    assert_same_bits(states(loaded), states(expected))
    for shard in index.parent.glob("*.safetensors"):
        with pytest.raises(UnsafeModelError) as refused:
            load_tiny(unet=f"edit/{shard.name}")
        assert refused.value.reason == "WEIGHTS_SHARD_ALONE"
    (index.parent / "edit-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnsafeModelError) as refused:
        load_tiny(unet="edit/edit.safetensors.index.json")
    assert refused.value.reason == "WEIGHTS_SHARD_MISSING"
    assert refused.value.metadata["file_looked_for"] == "edit-00002-of-00002.safetensors"
    assert "edit.safetensors.index.json" in refused.value.message


def test_a_folder_of_another_pipeline_may_replace_a_part(tiny: Path, load_tiny: Load) -> None:
    module = UNet2DConditionModel.from_pretrained(tiny / "pipeline" / "unet")
    with torch.no_grad():
        module.conv_in.bias.add_(1)
    module.save_pretrained(tiny / "erased", variant="fp16")
    loaded = load_tiny(unet="erased")
    assert torch.equal(loaded.denoiser.state_dict()["conv_in.bias"], module.conv_in.bias)
    # The same in a pipeline that was saved whole.
    (tiny / "saved").mkdir()
    (tiny / "erased").rename(tiny / "saved" / "unet")
    assert_same_bits(states(load_tiny(unet="saved")), states(loaded))
    (tiny / "saved" / "unet").rename(tiny / "erased")
    config = json.loads((tiny / "erased" / "config.json").read_text())
    (tiny / "erased" / "config.json").write_text(json.dumps(config | {"attention_head_dim": 4}))
    with pytest.raises(UnsafeModelError) as refused:
        load_tiny(unet="erased")
    assert refused.value.reason == "WEIGHTS_OTHER_CONFIG"
    assert "attention_head_dim" in refused.value.message
    load_tiny(unet="erased/diffusion_pytorch_model.fp16.safetensors")


@pytest.mark.parametrize("store", [a_text_encoder_of_transformers_4, names_of_trainers])
def test_a_replacing_text_encoder_of_older_programs(tiny: Path, load_tiny: Load, store: Store) -> None:
    before = load_tiny()
    rewrite(tiny / "pipeline", "text_encoder", lambda state: {key: tensor + 0.5 for key, tensor in state.items()})
    bare = load_file(whole(tiny / "pipeline", "text_encoder"))
    store(tiny / "pipeline")
    whole(tiny / "pipeline", "text_encoder").rename(tiny / "edit.safetensors")
    save_file(before.text_encoder.state_dict(), whole(tiny / "pipeline", "text_encoder"))
    state = load_tiny(text_encoder="edit.safetensors").text_encoder.state_dict()
    assert all(torch.equal(tensor, bare[key]) for key, tensor in state.items())


REFUSED: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "twice under two names": (
        {"conv_in.bias": torch.zeros(8), "unet.conv_in.bias": torch.ones(8)},
        "WEIGHTS_AMBIGUOUS",
        "'conv_in.bias' twice",
    ),
    "a convolution of three pixels as a linear layer": (
        {"conv_in.weight": torch.zeros(8, 36)},
        "WEIGHTS_WRONG_SHAPE",
        "(8, 4, 3, 3)",
    ),
    "eight bits": (
        {"conv_in.bias": torch.zeros(8).to(torch.float8_e4m3fn)},
        "WEIGHTS_WRONG_TYPE",
        "F8_E4M3",
    ),
    "CompVis": (
        {"model.diffusion_model.middle_block.1.norm.bias": torch.zeros(8)},
        "WEIGHTS_LAYOUT",
        "unerase import edit.safetensors --as unet --out FOLDER",
    ),
    "kohya": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 8)},
        "WEIGHTS_LAYOUT",
        "unerase import edit.safetensors --as lora --out FOLDER",
    ),
    "PEFT": (
        {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(2, 8)},
        "WEIGHTS_LAYOUT",
        "a LoRA in PEFT's layout",
    ),
    "textual inversion": (
        {"<hourglass>": torch.zeros(1, 16)},
        "WEIGHTS_LAYOUT",
        "unerase import edit.safetensors --as embedding --out FOLDER",
    ),
    "a text encoder as a UNet": (
        {"text_model.final_layer_norm.bias": torch.zeros(16)},
        "WEIGHTS_LAYOUT",
        "name it as text_encoder",
    ),
    "the latents' layers of another part": (
        {"conv_in.bias": torch.zeros(8), "encoder.conv_in.bias": torch.zeros(8)},
        "WEIGHTS_UNKNOWN_TENSOR",
        "'encoder.conv_in.bias'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_replace_a_unet_is_named(tiny: Path, load_tiny: Load, name: str) -> None:
    tensors, reason, words = REFUSED[name]
    save_file(tensors, tiny / "edit.safetensors")
    with pytest.raises(UnsafeModelError) as refused:
        load_tiny(unet="edit.safetensors")
    assert (refused.value.reason, refused.value.metadata["file_found"]) == (reason, "edit.safetensors")
    assert refused.value.metadata["model"] == "changed"
    assert words in refused.value.message
    (problem,) = check_model(Catalogue.load(embedded=tiny / "catalogue.yaml"), "changed").problems
    assert problem.reason == reason


def test_weights_that_change_while_they_are_loaded(
    tiny: Path, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unerase_backend.diffusion import weights

    fill = weights.fill

    def cut_off(module: Any, tensors: Any, dtype: torch.dtype) -> None:
        path = whole(tiny / "pipeline", "unet")
        path.write_bytes(path.read_bytes()[:1000])
        fill(module, tensors, dtype)

    monkeypatch.setattr(weights, "fill", cut_off)
    with pytest.raises(UnsafeModelError) as refused:
        load_tiny()
    assert refused.value.reason == "WEIGHTS_UNREADABLE"
