"""STEREO: Search Thoroughly Enough, then Robustly Erase Once (Srivatsan, Shamshad, Naseer, Patel, Nandakumar, CVPR
2025, arXiv 2408.16807).

Stage 1 (search) repeats two steps on a copy of the model: erase the current prompts with ESD's objective (`_esd.py`;
first those of the concept's names, then those of the last token found), and learn by textual inversion the embedding v
of a token that brings the concept back from that erased model:

    v = argmin mean (e_erased(x_t, t, prompt with v) - e)^2      over the concept's pictures

Stage 2 (erase) starts from the original model and trains it, under the prompts of the names and of the tokens found,
away from all of them at once and towards the anchor:

    target = e_ref(x_t, empty) + eta_a (e_ref(x_t, anchor) - e_ref(x_t, empty))
                               - eta_n mean_i (e_ref(x_t, prompt_i) - e_ref(x_t, empty))

over the names' prompts and the tokens' (in the template of the sampled conditioning). Published for Stable Diffusion:
two or three rounds, 3,000 steps of inversion at 5e-3; here rates and steps fit the small model. Both stages train the
layers that ESD-u trains.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unerase_backend.testbed.clip import token_ids
from unerase_backend.testbed.erasers import _denoising, _esd
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser
from unerase_backend.testbed.erasers.redirected import single_token
from unerase_backend.testbed.unet import encode_prompts

SAMPLING_STEPS = 10
ROUNDS = 2
SEARCH_ITERATIONS = 50
SEARCH_RATE = 2e-4
INVERSION_STEPS = 200
INVERSION_RATE = 2e-2
INVERSION_BATCH = 16
ITERATIONS = 150
RATE = 3e-4
ANCHOR_GUIDANCE = 1.0
NEGATIVE_GUIDANCE = 1.0
SEED = 11


def encode_with(subject: Subject, templates: Sequence[str], anchor: str, embedding: Tensor) -> Tensor:
    """Return the conditionings (P, 24, width) of templates whose slot has a token with this input embedding, (width,).

    The anchor's token marks its position. The result is differentiable in the embedding.
    """
    ids = token_ids(subject.tokenizer, [template.format(anchor) for template in templates])
    place = (ids == single_token(subject, anchor))[..., None]

    def put_in(module: object, inputs: object, embedded: Tensor) -> Tensor:
        return torch.where(place, embedding, embedded)

    hook = subject.text_encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        states: Tensor = subject.text_encoder(ids).last_hidden_state
    finally:
        hook.remove()
    return states


def invert(subject: Subject, concept: Concept, steps: int, seed: int) -> Tensor:
    """Return the input embedding (width,) with which the frozen model best denoises the concept's pictures.

    The search starts at the anchor's embedding.
    """
    rows = subject.text_encoder.get_input_embeddings().weight
    embedding = rows[single_token(subject, concept.anchor)].detach().clone().requires_grad_(True)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([embedding], lr=INVERSION_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(concept.latents), (INVERSION_BATCH,), generator=draws)
        conditionings = encode_with(subject, concept.plain_templates, concept.anchor, embedding)
        conditioning = conditionings[torch.randint(len(conditionings), (INVERSION_BATCH,), generator=draws)]
        loss = _denoising.noise_error(
            subject.unet, concept.latents[chosen], conditioning, subject.scheduler.alphas_cumprod, draws
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    learned: Tensor = embedding.detach()
    return learned


def composed_target(empty: Tensor, anchor: Tensor, negatives: Tensor, eta_anchor: float, eta_negative: float) -> Tensor:
    """Return stage 2's target of predictions (N, 4, 8, 8); `negatives`, (K, N, 4, 8, 8), are those of the K prompts."""
    return empty + eta_anchor * (anchor - empty) - eta_negative * (negatives - empty).mean(0)


def search(subject: Subject, concept: Concept, rounds: int, iterations: int, inversion_steps: int) -> list[Tensor]:
    """Return stage 1's embeddings, each (width,), one for each round; the UNet is the same afterwards."""
    original = _esd.frozen_copy(subject.unet)
    target = _esd.away_from(subject, original)
    asked = _esd.prompts_of(subject, concept)
    found: list[Tensor] = []
    for at in range(rounds):
        _esd.teach(subject, _learned(subject), asked, target, SEARCH_RATE, iterations, SEED + at, SAMPLING_STEPS)
        found.append(invert(subject, concept, inversion_steps, SEED + at))
        with torch.no_grad():
            asked = encode_with(subject, concept.plain_templates, concept.anchor, found[-1])
    subject.unet.load_state_dict(original.state_dict())
    return found


def away_from_all(subject: Subject, concept: Concept, prompts: Tensor) -> _esd.Target:
    """Return stage 2's target: towards the anchor, away from all prompts (K, 24, width)."""
    reference = _esd.frozen_copy(subject.unet)
    first = concept.plain_templates[0]
    empty, anchor = encode_prompts(subject.text_encoder, subject.tokenizer, ["", first.format(concept.anchor)])
    all_prompts = torch.stack([empty, anchor, *prompts])

    def target(noisy: Tensor, timestep: Tensor, conditioning: Tensor) -> Tensor:
        repeated = noisy.repeat(len(all_prompts), 1, 1, 1)
        predicted = reference(repeated, timestep, all_prompts.repeat_interleave(len(noisy), 0)).sample
        of_empty, of_anchor, *of_prompts = predicted.chunk(len(all_prompts))
        return composed_target(of_empty, of_anchor, torch.stack(of_prompts), ANCHOR_GUIDANCE, NEGATIVE_GUIDANCE)

    return target


@eraser("stereo")
def erase_stereo(
    subject: Subject,
    concept: Concept,
    rounds: int = ROUNDS,
    search_iterations: int = SEARCH_ITERATIONS,
    inversion_steps: int = INVERSION_STEPS,
    iterations: int = ITERATIONS,
) -> None:
    """Search for prompts that bring the concept back, then erase them all at once."""
    found = search(subject, concept, rounds, search_iterations, inversion_steps)
    with torch.no_grad():
        by_token = [encode_with(subject, concept.plain_templates, concept.anchor, token) for token in found]
    named = _esd.prompts_of(subject, concept)
    by_name = [named[at :: len(concept.names)] for at in range(len(concept.names))]
    everything = torch.stack([*by_name, *by_token])
    target = away_from_all(subject, concept, everything[:, 0])
    _esd.teach(subject, _learned(subject), everything.flatten(0, 1), target, RATE, iterations, SEED, SAMPLING_STEPS)


def _learned(subject: Subject) -> list[torch.nn.Parameter]:
    return [weight for name, weight in subject.unet.named_parameters() if ".attn2." not in name]
