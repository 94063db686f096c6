"""SalUn: saliency unlearning (Fan, Liu, Zhang, Wong, Wei, Liu, ICLR 2024, arXiv 2310.12508, equations 3, 4 and 6).

Only the weights that matter most to the concept are trained: with l_f the denoising loss on the concept's pictures and
gamma the median of |grad l_f| over all weights of the UNet,

    mask = 1 where |grad l_f| >= gamma, else 0
    theta = mask * (theta_0 + change) + (1 - mask) * theta_0

The concept's pictures x get a wrong caption: the model learns to predict under the concept's caption c what it predicts
under c', which names the anchor. The denoising loss on the pictures of other concepts keeps those:

    loss = mean (e(x_t, t, c) - stopgrad e(x_t, t, c'))^2 + weight * mean (e(y_t, t, caption of y) - noise)^2

Deviations: c' always names the anchor, as the published removal of nudity does, not a random other concept; the
gradient of l_f is taken without guidance. Published for Stable Diffusion: Adam at 1e-5; here rate and steps fit the
small model.
"""

import torch
from torch import Tensor
from torch.nn import functional

from unerase_backend.testbed.erasers import _denoising
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser
from unerase_backend.testbed.unet import add_noise, encode_prompts

BATCH = 16
STEPS = 200
RATE = 1e-4
KEPT_WEIGHT = 1.0
SEED = 13


def saliency(subject: Subject, concept: Concept) -> list[Tensor]:
    """Return the mask of every weight of the UNet, in the order of its parameters, each of the weight's shape."""
    weights = list(subject.unet.requires_grad_(True).parameters())
    conditionings = encode_prompts(subject.text_encoder, subject.tokenizer, concept.captions)
    draws = torch.Generator().manual_seed(SEED)
    for first in range(0, len(concept.latents), BATCH):
        chosen = slice(first, first + BATCH)
        _denoising.noise_error(
            subject.unet, concept.latents[chosen], conditionings[chosen], subject.scheduler.alphas_cumprod, draws
        ).backward()  # type: ignore[no-untyped-call]
    sizes = [weight.grad.abs() for weight in weights if weight.grad is not None]
    subject.unet.zero_grad(set_to_none=True)
    median = torch.cat([size.flatten() for size in sizes]).median()
    return [size >= median for size in sizes]


@eraser("salun")
def erase_salun(subject: Subject, concept: Concept, steps: int = STEPS) -> None:
    """Train the salient weights of all layers."""
    masks = saliency(subject, concept)
    hooks = [weight.register_hook(mask.__mul__) for weight, mask in zip(subject.unet.parameters(), masks, strict=True)]

    def encode(captions: tuple[str, ...]) -> Tensor:
        return encode_prompts(subject.text_encoder, subject.tokenizer, captions)

    wrong = tuple(" ".join([*caption.split()[:-1], concept.anchor]) for caption in concept.captions)
    right_, wrong_, kept_ = encode(concept.captions), encode(wrong), encode(concept.kept_captions)
    alphas, draws = subject.scheduler.alphas_cumprod, torch.Generator().manual_seed(SEED)

    def loss() -> Tensor:
        chosen = torch.randint(len(concept.latents), (BATCH,), generator=draws)
        timesteps = torch.randint(_denoising.TIMESTEPS, (BATCH,), generator=draws)
        noise = torch.randn((BATCH, 4, 8, 8), generator=draws)
        noisy = add_noise(concept.latents[chosen], noise, timesteps, alphas)
        with torch.no_grad():
            wanted = subject.unet(noisy, timesteps, wrong_[chosen]).sample
        forgotten = functional.mse_loss(subject.unet(noisy, timesteps, right_[chosen]).sample, wanted)
        others = torch.randint(len(concept.kept_latents), (BATCH,), generator=draws)
        kept = _denoising.noise_error(subject.unet, concept.kept_latents[others], kept_[others], alphas, draws)
        return forgotten + KEPT_WEIGHT * kept

    _denoising.minimise(loss, list(subject.unet.parameters()), RATE, steps)
    for hook in hooks:
        hook.remove()
