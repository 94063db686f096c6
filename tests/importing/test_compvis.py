"""CompVis' names: as diffusers' own conversion translates whole UNets, and some tensors alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from support.importing import compvis_owners, imported, reference, saved, unet_weights
from unerase_backend.importing import compvis
from unerase_backend.importing.folders import architecture_of
from unerase_backend.runtime.errors import UnsafeModelError

SD1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
ATTENTION = (
    "norm",
    "proj_in",
    "proj_out",
    "transformer_blocks.0.norm1",
    "transformer_blocks.0.ff.net.0.proj",
    *(f"transformer_blocks.0.attn{n}.to_{each}" for n in (1, 2) for each in ("q", "k", "v", "out.0")),
)


def names(config: dict[str, Any]) -> list[str]:
    owners = [
        owner.replace("ATTENTION", each)
        for owner in compvis_owners(config)
        for each in (ATTENTION if "ATTENTION" in owner else [""])
    ]
    return [f"{owner}.{kind}" for owner in owners for kind in ("weight", "bias")]


def of_compvis(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a UNet by CompVis' names."""
    owners = {compvis.unet_name(f"{owner}.x", config["layers_per_block"]): owner for owner in compvis_owners(config)}
    found = {}
    for key, tensor in state.items():
        place, _, kind = key.rpartition(".")
        owner = next(
            ours + key.removeprefix(theirs.removesuffix("ATTENTION.x")).removesuffix(f".{kind}")
            if theirs.endswith("ATTENTION.x")
            else ours
            for theirs, ours in ((theirs, ours.removesuffix("ATTENTION")) for theirs, ours in owners.items() if theirs)
            if theirs == f"{place}.x" or (theirs.endswith("ATTENTION.x") and key.startswith(theirs[:-11]))
        )
        found[f"model.diffusion_model.{owner}.{kind}"] = tensor
    return found


@pytest.mark.parametrize("config", [SD1, architecture_of(reference())["unet"]], ids=["sd1", "testbed"])
def test_names_are_those_of_diffusers_conversion(config: dict[str, Any]) -> None:
    marked = {f"model.diffusion_model.{name}": torch.tensor(float(at)) for at, name in enumerate(names(config))}
    theirs = convert_ldm_unet_checkpoint(dict(marked), {**config, "class_embed_type": None})
    ours = compvis.unet(compvis.without_prefix(marked, compvis.UNET), config["layers_per_block"])
    assert {key: float(value) for key, value in ours.items()} == {key: float(value) for key, value in theirs.items()}
    with torch.device("meta"):
        module = UNet2DConditionModel.from_config(dict(config))
    owners = {key.rpartition(".")[0] for key in module.state_dict()}
    # A block of as many channels as the one before has no shortcut, which the names do not say.
    unmatched = {key for key in ours if key.rpartition(".")[0] not in owners}
    assert all("conv_shortcut" in key for key in unmatched)


def test_a_part_of_a_unet_is_placed_bit_for_bit(tmp_path: Path) -> None:
    config, edited = architecture_of(reference())["unet"], unet_weights("testbed/esd-x")
    stored = of_compvis(edited, config)
    assert all("transformer_blocks.0.attn2" in key for key in stored)
    save_file(stored, tmp_path / "esd.safetensors")
    found = imported(tmp_path / "esd.safetensors", base=reference()).files
    assert found.keys() == {"unet"}
    assert found["unet"].keys() == edited.keys()
    assert all(torch.equal(found["unet"][key], tensor) for key, tensor in edited.items())


def test_what_is_of_no_part_is_said(tmp_path: Path) -> None:
    """As Concept Ablation stores the embeddings of new words beside what it changed of the UNet."""
    stored = of_compvis(unet_weights("testbed/esd-x"), architecture_of(reference())["unet"])
    path = saved(tmp_path / "delta.ckpt", {"state_dict": stored | {"embed": torch.zeros(1, 64)}})
    assert imported(path, base=reference()).notes[-1] == "left out 1 tensor that is of no part, 'embed' among them"


def test_it_needs_the_model_that_it_changes(tmp_path: Path) -> None:
    stored = of_compvis(unet_weights("testbed/esd-x"), architecture_of(reference())["unet"])
    with pytest.raises(UnsafeModelError, match="--base or --config"):
        imported(saved(tmp_path / "esd.ckpt", {"state_dict": stored}))


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    stored = {"model.diffusion_model.input_blocks.1.0.nothing.weight": torch.zeros(2)}
    with pytest.raises(UnsafeModelError, match=r"input_blocks\.1\.0\.nothing"):
        imported(saved(tmp_path / "x.pt", stored), base=reference())


def test_a_block_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    stored = {"model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, 2)}
    with pytest.raises(UnsafeModelError, match=r"down_blocks\.3\.attentions\.1"):
        imported(saved(tmp_path / "x.pt", stored), base=reference())


def clip_of_openai(module: CLIPTextModel) -> dict[str, Tensor]:
    state = {f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in module.state_dict().items()}
    positions = torch.arange(24)[None]
    return state | {"cond_stage_model.transformer.text_model.embeddings.position_ids": positions}


def clip_of_openclip(module: CLIPTextModel) -> dict[str, Tensor]:
    """The text tower in OpenCLIP's layout, with joint matrices for query, key and value, and one layer more."""
    state = module.state_dict()
    plain = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    found = {f"cond_stage_model.model.{theirs}": state[ours] for theirs, ours in plain.items()}
    inner = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for layer in range(module.config.num_hidden_layers):
        theirs, ours = f"cond_stage_model.model.transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            found |= {f"{theirs}.{a}.{kind}": state[f"{ours}.{b}.{kind}"] for a, b in inner.items()}
            joint = [state[f"{ours}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
            found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(joint)
    return found | {"cond_stage_model.model.text_projection": torch.eye(module.config.hidden_size)}


@pytest.mark.parametrize("stored", [clip_of_openai, clip_of_openclip])
def test_text_encoders_come_out_whole(tmp_path: Path, stored: Any) -> None:
    folder = reference()
    module = CLIPTextModel(CLIPTextConfig.from_dict(architecture_of(folder)["text_encoder"]))
    path = saved(tmp_path / "text.ckpt", {"state_dict": stored(module)})
    found = imported(path, "text-encoder", folder, complete=True).files["text_encoder"]
    expected = {key: each for key, each in module.state_dict().items() if not key.endswith("position_ids")}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


VAE_NAMES = {
    ".mid_block.resnets.0.": ".mid.block_1.",
    ".mid_block.resnets.1.": ".mid.block_2.",
    ".mid_block.attentions.0.group_norm.": ".mid.attn_1.norm.",
    ".mid_block.attentions.0.to_q.": ".mid.attn_1.q.",
    ".mid_block.attentions.0.to_k.": ".mid.attn_1.k.",
    ".mid_block.attentions.0.to_v.": ".mid.attn_1.v.",
    ".mid_block.attentions.0.to_out.0.": ".mid.attn_1.proj_out.",
    "coder.conv_norm_out.": "coder.norm_out.",
    ".downsamplers.0.": ".downsample.",
    ".upsamplers.0.": ".upsample.",
    ".resnets.": ".block.",
    ".conv_shortcut.": ".nin_shortcut.",
    "encoder.down_blocks.": "encoder.down.",
}


def of_compvis_vae(module: AutoencoderKL) -> dict[str, Tensor]:
    """An autoencoder by CompVis' names: its decoder counts upwards, and its attention has convolutions of 1 x 1."""
    levels = len(module.config.block_out_channels)
    found = {}
    for key, tensor in module.state_dict().items():
        name = key
        for ours, theirs in VAE_NAMES.items():
            name = name.replace(ours, theirs)
        for level in range(levels):
            name = name.replace(f"decoder.up_blocks.{level}.", f"decoder.UP.{levels - 1 - level}.")
        matrix = ".mid.attn_1." in name and name.endswith(".weight") and tensor.dim() == 2
        found[f"first_stage_model.{name.replace('.UP.', '.up.')}"] = tensor[:, :, None, None] if matrix else tensor
    return found


def test_a_whole_checkpoint_becomes_its_parts(tmp_path: Path) -> None:
    folder = reference()
    configs = architecture_of(folder)
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(configs["unet"])
    vae = AutoencoderKL.from_config(configs["vae"])
    words = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
    state = of_compvis(unet.state_dict(), configs["unet"]) | of_compvis_vae(vae) | clip_of_openai(words)
    training = {"betas": torch.zeros(1000), "model_ema.decay": torch.zeros(()), "scale_factor": torch.tensor(0.2)}
    training["stranger.weight"] = torch.zeros(2)
    path = saved(tmp_path / "sd.ckpt", {"state_dict": state | training, "global_step": 7, "optimizer_states": [{}]})
    result = imported(path, "", folder)
    assert [note for note in result.notes if "left out" in note] == [
        "left out 1 tensor of moving averages (model_ema)",
        "left out 1 tensor that is of no part, 'stranger.weight' among them",
    ]
    found = result.files
    for part, module in (("unet", unet), ("vae", vae), ("text_encoder", words)):
        expected = {key: each for key, each in module.state_dict().items() if not key.endswith("position_ids")}
        assert found[part].keys() == expected.keys()
        assert all(torch.equal(found[part][key], tensor) for key, tensor in expected.items())
    assert imported(path, "unet", folder).files.keys() == {"unet"}
    del state["model.diffusion_model.out.2.bias"]
    with pytest.raises(UnsafeModelError, match=r"conv_out\.bias"):
        imported(saved(tmp_path / "sd.ckpt", state), "", folder)
