"""What a file holds, from the names of its tensors: diffusers' and transformers' own modules, and published layouts."""

import shlex
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel

from unerase_backend.catalogue import layouts
from unerase_backend.catalogue.layouts import import_command, recognise

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = ATTENTION.replace(".", "_")


@pytest.mark.parametrize(
    ("layout", "build"),
    [
        (layouts.UNET, UNet2DConditionModel),
        (layouts.VAE, AutoencoderKL),
        (layouts.TEXT_ENCODER, lambda: CLIPTextModel(CLIPTextConfig(num_hidden_layers=1))),
        (layouts.CLIP, lambda: CLIPModel(CLIPModel.config_class())),
        (layouts.TRANSFORMER, lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1)),
        (layouts.TRANSFORMER, lambda: SD3Transformer2DModel(num_layers=1)),
    ],
)
def test_modules_as_their_libraries_store_them(layout: layouts.Layout, build: type[torch.nn.Module]) -> None:
    with torch.device("meta"):
        names = list(build().state_dict())
    assert recognise(names) == layout
    assert recognise([f"module.{name}" for name in names]) == layout
    # A file that replaces some tensors has the layout of the whole.
    if layout.part is not None:
        assert {recognise([name]) for name in names} == {layout}


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (layouts.UNET, [f"unet.{ATTENTION}.weight"]),
        (layouts.TEXT_ENCODER, ["text_model.embeddings.position_ids", "text_model.encoder.layers.0.mlp.fc1.bias"]),
        (layouts.TEXT_ENCODER, ["text_encoder.text_model.final_layer_norm.bias"]),
        (layouts.VAE, ["decoder.mid_block.attentions.0.query.weight", "quant_conv.bias"]),
        (layouts.PIPELINE, [f"unet.{ATTENTION}.weight", "text_encoder.text_model.final_layer_norm.bias"]),
        (layouts.COMPVIS_UNET, ["model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"]),
        (layouts.COMPVIS_UNET, ["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]),
        (layouts.COMPVIS_UNET, ["diffusion_model.time_embed.0.weight"]),
        (
            layouts.COMPVIS_MODEL,
            [
                "model.diffusion_model.out.2.bias",
                "first_stage_model.decoder.conv_in.bias",
                "cond_stage_model.transformer.text_model.final_layer_norm.bias",
                "alphas_cumprod",
            ],
        ),
        (layouts.COMPVIS_TEXT_ENCODER, ["cond_stage_model.transformer.text_model.final_layer_norm.bias"]),
        (layouts.COMPVIS_TEXT_ENCODER, ["cond_stage_model.model.transformer.resblocks.0.ln_1.bias"]),
        (layouts.COMPVIS_VAE, ["decoder.up.3.block.0.conv1.weight", "quant_conv.weight"]),
        (layouts.SDXL, ["conditioner.embedders.0.transformer.x", "model.diffusion_model.out.2.bias"]),
        (layouts.PEFT_LORA, [f"unet.{ATTENTION}.lora_A.weight", f"unet.{ATTENTION}.lora_B.weight"]),
        (layouts.PEFT_LORA, [f"base_model.model.{ATTENTION}.lora_A.default.weight"]),
        (layouts.KOHYA_LORA, [f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.alpha"]),
        (layouts.KOHYA_LORA, ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"]),
        (
            layouts.PROCESSOR_LORA,
            ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight"],
        ),
        (layouts.PROCESSOR_LORA, [f"unet.{ATTENTION}.lora.down.weight"]),
        (layouts.LYCORIS, [f"lora_unet_{FLAT}.hada_w1_a", f"lora_unet_{FLAT}.alpha"]),
        (layouts.LYCORIS, [f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.dora_scale"]),
        (layouts.LYCORIS, [f"lora_unet_{FLAT}.diff", f"lora_unet_{FLAT}.diff_b"]),
        (layouts.LYCORIS, [f"lycoris_{FLAT}.weight", f"lycoris_{FLAT}.on_input"]),
        (layouts.LYCORIS, ["lora_unet_mid_block_resnets_0_norm1.w_norm", "lora_unet_mid_block_resnets_0_norm1.b_norm"]),
        (layouts.LYCORIS, [f"lora_unet_{FLAT}.a1.weight", f"lora_unet_{FLAT}.b2.weight"]),
        (layouts.EMBEDDING, ["<hourglass>"]),
        (layouts.EMBEDDING, ["emb_params"]),
        (layouts.EMBEDDING, ["clip_l", "clip_g"]),
        (layouts.CONTROL, ["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"]),
        (layouts.TRANSFORMER, ["model.diffusion_model.double_blocks.0.img_attn.proj.bias"]),
        (layouts.TRANSFORMER, ["model.diffusion_model.joint_blocks.0.context_block.mlp.fc1.bias"]),
        (layouts.UNKNOWN, ["hidden.payload"]),
        (layouts.UNKNOWN, []),
    ],
)
def test_layouts_that_are_published(layout: layouts.Layout, names: list[str]) -> None:
    assert recognise(names) == layout


def test_leco_and_spm_store_their_prompts_beside_a_kohya_lora() -> None:
    names = [f"lora_unet_{FLAT}.lora_down.weight"]
    assert recognise(names, {"prompts": "[]", "config": "{}"}) == layouts.LECO_SPM
    assert recognise(names, {"prompts": "[]", "ss_network_dim": "4"}) == layouts.KOHYA_LORA


def test_the_command_keeps_a_name_whole() -> None:
    command = import_command("esd hour'glass.pt", "unet")
    assert shlex.split(command) == ["unerase", "import", "esd hour'glass.pt", "--as", "unet", "--out", "FOLDER"]


def test_recognition_needs_no_torch() -> None:
    code = "import sys, unerase_backend.catalogue.layouts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
