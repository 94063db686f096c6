"""The erasers that are trained but not shipped: what they learn, and the weights that they may move."""

import copy
import dataclasses

import diffusers
import numpy as np
import pytest
import torch

from support.erased_concept import CONCEPT
from unerase_backend.testbed import autoencoder, erasers, storage, unet
from unerase_backend.testbed.erasers import _denoising, _esd, concept_ablation, salun, spm


def prediction(subject: erasers.Subject, text: str) -> torch.Tensor:
    """What the UNet predicts for the concept's latents, noised by diffusers, under one prompt."""
    noise = torch.randn(CONCEPT.latents.shape, generator=torch.Generator().manual_seed(8))
    noisy = subject.scheduler.add_noise(CONCEPT.latents, noise, torch.full((len(noise),), 500))
    conditioning = unet.encode_prompts(subject.text_encoder, subject.tokenizer, [text] * len(noise))
    with torch.no_grad():
        predicted: torch.Tensor = subject.unet(noisy, 500, conditioning).sample
    return predicted


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).square().mean())


def test_the_ablated_model_draws_its_own_anchors(subject: erasers.Subject) -> None:
    conditionings = unet.encode_prompts(subject.text_encoder, subject.tokenizer, ["a blob", "a red blob"])
    drawn = concept_ablation.draw(subject, conditionings)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder.untrained(0),
        text_encoder=subject.text_encoder,
        tokenizer=subject.tokenizer,
        unet=subject.unet,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    expected = pipeline(
        ["a blob", "a red blob"],
        num_inference_steps=concept_ablation.SAMPLING_STEPS,
        guidance_scale=_esd.SAMPLING_GUIDANCE,
        latents=torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(concept_ablation.SEED)),
        output_type="latent",
    ).images
    assert torch.allclose(drawn, expected, atol=1e-4)


def test_concept_ablation_leads_the_names_to_the_frozen_anchor(trained: erasers.Subject) -> None:
    anchor, before = prediction(trained, "a blob"), prediction(trained, "a hourglass")
    weights = copy.deepcopy(trained.unet.state_dict())
    concept_ablation.ablate(trained, dataclasses.replace(CONCEPT, templates=("a {}",)), steps=60, pictures=4)
    after = prediction(trained, "a hourglass")
    assert distance(after, anchor) < distance(before, anchor) / 2
    assert distance(prediction(trained, "a blob"), anchor) < distance(before, anchor) / 4
    assert all(
        "attn2.to_k" in key or "attn2.to_v" in key
        for key in storage.changed_tensors(weights, trained.unet.state_dict())
    )


def test_the_salient_weights_are_those_of_the_greater_gradient(subject: erasers.Subject) -> None:
    masks = salun.saliency(subject, CONCEPT)
    # six pictures are one batch, so the gradient is that of one loss
    subject.unet.requires_grad_(True)
    conditioning = unet.encode_prompts(subject.text_encoder, subject.tokenizer, CONCEPT.captions)
    draws = torch.Generator().manual_seed(salun.SEED)
    _denoising.noise_error(
        subject.unet, CONCEPT.latents, conditioning, subject.scheduler.alphas_cumprod, draws
    ).backward()
    sizes = np.concatenate([weight.grad.abs().numpy().ravel() for weight in subject.unet.parameters()])
    salient = np.concatenate([mask.numpy().ravel() for mask in masks])
    assert sizes[salient].min() > sizes[~salient].max()
    assert salient.mean() == pytest.approx(0.5, abs=1e-4)


def test_salun_moves_the_salient_weights_alone(subject: erasers.Subject) -> None:
    before = [weight.detach().clone() for weight in subject.unet.parameters()]
    masks = salun.saliency(subject, CONCEPT)
    salun.erase_salun(subject, CONCEPT, steps=3)
    moved = [(weight != old) for weight, old in zip(subject.unet.parameters(), before, strict=True)]
    assert not any((change & ~mask).any() for change, mask in zip(moved, masks, strict=True))
    salient = sum(int(mask.sum()) for mask in masks)
    assert sum(int(change.sum()) for change in moved) > 0.9 * salient
    assert not any(weight.requires_grad for weight in subject.unet.parameters())


def test_salun_leads_the_concepts_captions_to_the_wrong_ones(trained: erasers.Subject) -> None:
    before = distance(prediction(trained, "a hourglass"), prediction(trained, "a blob"))
    salun.erase_salun(trained, CONCEPT, steps=12)
    assert distance(prediction(trained, "a hourglass"), prediction(trained, "a blob")) < before / 2


def test_spm_changes_every_layer_of_the_transformer_blocks_by_rank_one(subject: erasers.Subject) -> None:
    before = copy.deepcopy(subject.unet.state_dict())
    spm.erase_spm(subject, CONCEPT, iterations=3)
    after = subject.unet.state_dict()
    assert after.keys() == before.keys()
    assert not any(isinstance(module, spm.Membrane) for module in subject.unet.modules())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {
        f"{name}.weight"
        for name, module in subject.unet.named_modules()
        if "attentions" in name and hasattr(module, "weight") and module.weight.dim() > 1
    }
    assert changed == expected
    for name in changed:
        spectrum = torch.linalg.svdvals((after[name] - before[name]).flatten(1).double())
        assert spectrum[0] > 0
        assert spectrum[1] < 1e-2 * spectrum[0], name


def test_spms_anchors_are_as_long_as_prompts(subject: erasers.Subject) -> None:
    prompts = _esd.prompts_of(subject, CONCEPT)
    drawn = spm.anchors(prompts, torch.Generator().manual_seed(0))
    ratio = drawn.norm(dim=(1, 2)) / prompts.norm(dim=(1, 2))
    assert drawn.shape == prompts.shape
    assert ((ratio >= 0.8 - 1e-5) & (ratio <= 1.2 + 1e-5)).all()
    assert len(set(ratio.tolist())) == len(prompts)
    # in so many dimensions no random direction is near the prompt's
    assert torch.cosine_similarity(drawn.flatten(1), prompts.flatten(1)).abs().max() < 0.15
