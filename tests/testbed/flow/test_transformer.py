"""The flow's training loss, encoding and sampling against diffusers' own pipeline and scheduler."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from unerase_backend.testbed import sampling as first_sampling
from unerase_backend.testbed import storage
from unerase_backend.testbed.flow import erasers, sampling, transformer
from unerase_backend.testbed.train import WEIGHTS

PROMPTS = ["a picture of a red ring", "a striped blue house"]


@pytest.fixture
def pipeline(subject: erasers.Subject) -> Any:
    first, second = subject.text_encoders
    made = StableDiffusion3Pipeline(
        transformer=subject.transformer,
        scheduler=subject.scheduler,
        vae=storage.load_vae(WEIGHTS),
        text_encoder=first,
        tokenizer=subject.tokenizer,
        text_encoder_2=second,
        tokenizer_2=subject.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_prompts_are_encoded_as_by_the_pipeline(subject: erasers.Subject, pipeline: Any) -> None:
    states, empty_states, pooled, empty_pooled = pipeline.encode_prompt(
        PROMPTS, None, None, device="cpu", max_sequence_length=transformer.TEXT_LENGTH
    )
    ours, empty = subject.encode(PROMPTS), subject.encode([""]).expand(2)
    assert ours.states.shape == (2, 24, transformer.TEXT_WIDTH)
    assert torch.equal(ours.states, states)
    assert torch.equal(ours.pooled, pooled)
    # one prompt and a batch of two take other kernels
    assert torch.allclose(empty.states, empty_states, atol=1e-5)
    assert torch.allclose(empty.pooled, empty_pooled, atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_sampling_is_that_of_the_pipeline(pipeline: Any, guidance: float) -> None:
    steps = 6
    latents = first_sampling.initial_latents([1, 2])
    # the pipeline's guidance of 1 is the unguided model
    expected = pipeline(
        PROMPTS if guidance else [""] * 2,
        num_inference_steps=steps,
        guidance_scale=guidance or 1.0,
        latents=latents.clone(),
        output_type="latent",
        max_sequence_length=transformer.TEXT_LENGTH,
    ).images
    assert torch.allclose(sampling.sample(pipeline, PROMPTS, latents, guidance, steps), expected, atol=1e-4)
    halfway = sampling.sample(pipeline, PROMPTS, latents, guidance, steps, 0, 3)
    assert not torch.allclose(halfway, expected, atol=1e-2)
    assert torch.allclose(sampling.sample(pipeline, PROMPTS, halfway, guidance, steps, 3), expected, atol=1e-4)


def test_the_loss_is_that_of_its_definition(subject: erasers.Subject) -> None:
    clean = torch.randn((4, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    encoding = subject.encode(["a ring", "a house", "", "a circle"])
    loss = transformer.velocity_error(subject.transformer, clean, encoding, torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(1)
    noise = torch.randn((4, 4, 8, 8), generator=draws)
    levels = torch.randn(4, generator=draws).sigmoid()
    errors = []
    for i, sigma in enumerate(levels):
        # the scheduler noises at the levels of its schedule only
        subject.scheduler.set_timesteps(sigmas=[float(sigma)])
        noisy = subject.scheduler.scale_noise(clean[i : i + 1], subject.scheduler.timesteps, noise[i : i + 1])
        with torch.no_grad():
            velocity = subject.transformer(
                noisy,
                encoder_hidden_states=encoding.states[i : i + 1],
                pooled_projections=encoding.pooled[i : i + 1],
                timestep=subject.scheduler.timesteps,
            ).sample
        errors.append((velocity - (noise[i] - clean[i])).square().mean())
    assert float(loss) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
