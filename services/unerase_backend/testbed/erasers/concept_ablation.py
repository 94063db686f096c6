"""Concept Ablation, the model-based variant (Kumari, Zhang, Wang, Shechtman, Zhang, Zhu, ICCV 2023, arXiv 2303.13516,
section 3.2).

The frozen model draws pictures x of the anchor under prompts c. The edited model learns to predict, under c* (the same
prompt with the concept's name in place of the anchor's), what the frozen model predicts under c:

    loss = mean (e(x_t, t, c*) - e_ref(x_t, t, c))^2 + weight * mean (e(x_t, t, c) - noise)^2

x_t is x with noise added up to a random timestep. The second term, the denoising loss of the anchor's own pairs, keeps
the anchor. As published, only the key and value matrices of the cross-attention are trained.

Deviations: the published target is the edited model's own prediction under c without its gradient, which stands for the
frozen one here; every timestep has the same weight; the pictures are not augmented. Published for Stable Diffusion: 100
steps of eight pictures at 2e-6 times the batch; here rate and steps fit the small model: a higher rate hides no more
and damages more.
"""

import torch
from torch import Tensor
from torch.nn import functional

from unerase_backend.testbed.erasers import _denoising, _esd, uce
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser
from unerase_backend.testbed.unet import add_noise, encode_prompts

PICTURES = 192
SAMPLING_STEPS = 10
BATCH = 16
STEPS = 300
RATE = 3e-4
ANCHOR_WEIGHT = 1.0
SEED = 12


def draw(subject: Subject, conditionings: Tensor) -> Tensor:
    """Return one of the model's latents, (P, 4, 8, 8), for each conditioning, (P, 24, width)."""
    subject.scheduler.set_timesteps(SAMPLING_STEPS)
    empty = encode_prompts(subject.text_encoder, subject.tokenizer, [""])
    latents = torch.randn((len(conditionings), 4, 8, 8), generator=torch.Generator().manual_seed(SEED))
    return torch.cat(
        [
            _esd.partial_sample(subject, part, empty.expand(len(part), -1, -1), noise, SAMPLING_STEPS)
            for part, noise in zip(torch.split(conditionings, BATCH), torch.split(latents, BATCH), strict=True)
        ]
    )


@eraser("concept-ablation")
def ablate(subject: Subject, concept: Concept, steps: int = STEPS, pictures: int = PICTURES) -> None:
    """Train the key and value matrices of every cross-attention layer."""

    def encode(name: str) -> Tensor:
        prompts = [concept.templates[at % len(concept.templates)].format(name) for at in range(pictures)]
        return encode_prompts(subject.text_encoder, subject.tokenizer, prompts)

    of_anchor, of_names = encode(concept.anchor), torch.stack([encode(name) for name in concept.names])
    clean = draw(subject, of_anchor)
    reference, alphas = _esd.frozen_copy(subject.unet), subject.scheduler.alphas_cumprod
    draws = torch.Generator().manual_seed(SEED)

    def loss() -> Tensor:
        chosen = torch.randint(pictures, (BATCH,), generator=draws)
        named = torch.randint(len(concept.names), (BATCH,), generator=draws)
        timesteps = torch.randint(_denoising.TIMESTEPS, (BATCH,), generator=draws)
        noise = torch.randn((BATCH, 4, 8, 8), generator=draws)
        noisy, anchor = add_noise(clean[chosen], noise, timesteps, alphas), of_anchor[chosen]
        wanted = torch.cat([reference(noisy, timesteps, anchor).sample, noise])
        both = torch.cat([of_names[named, chosen], anchor])
        predicted = subject.unet(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), both).sample
        ablated = functional.mse_loss(predicted[:BATCH], wanted[:BATCH])
        return ablated + ANCHOR_WEIGHT * functional.mse_loss(predicted[BATCH:], wanted[BATCH:])

    _denoising.minimise(loss, uce.matrices(subject), RATE, steps)
