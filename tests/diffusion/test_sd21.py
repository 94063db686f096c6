"""Stable Diffusion 2.1's own configuration, small: OpenCLIP's text encoder without its last layer, heads by block,
linear projections, and the velocity; checked, loaded and sampled as diffusers samples it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.diffusion.sampler import Sampler

WIDTHS, HEADS = (8, 16, 32, 32), [1, 2, 4, 4]


@pytest.fixture
def folder(tiny: Path) -> Path:
    """The tiny pipeline with the text encoder, UNet and scheduler of Stable Diffusion 2.1."""
    torch.manual_seed(1)
    path = tiny / "pipeline"
    tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
    words = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_act="gelu",
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=16,
        attention_head_dim=HEADS,
        use_linear_projection=True,
        block_out_channels=WIDTHS,
        norm_num_groups=4,
        layers_per_block=1,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(path / "vae", local_files_only=True),
        unet=unet,
        text_encoder=CLIPTextModel(words),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tiny / "sd21")
    (tiny / "sd21.yaml").write_text("models:\n  own/sd21: {pipeline: sd21, resolution: 16}\n")
    return tiny


# 1,000 timesteps are no multiple of 7 or 30 steps.
@pytest.mark.parametrize("steps", [7, 30])
def test_it_is_checked_loaded_and_sampled_as_diffusers_does(
    folder: Path, trajectory_of: Callable[..., Trajectory], steps: int
) -> None:
    read = Catalogue.load(embedded=folder / "sd21.yaml")
    found = check_model(read, "own/sd21")
    assert not found.problems
    assert found.facts.prediction_type == "v_prediction"
    model = load_model(read, "own/sd21", torch.device("cpu"), torch.float32)
    trajectory = trajectory_of("a picture of the heart", steps=steps, guidance_scale=3.0, latent_seed=9)
    [ours] = Sampler(model, batch_rows=2, decode_batch=1).run([trajectory])
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder / "sd21", safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(9))
    options = {"num_inference_steps": steps, "guidance_scale": 3.0, "latents": latents, "output_type": "latent"}
    theirs = pipeline("a picture of the heart", **options).images[0]
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-4, atol=1e-4)
