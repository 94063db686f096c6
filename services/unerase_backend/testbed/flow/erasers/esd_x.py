"""ESD-x on a flow: the edited model learns to predict the reference's velocity, guided away from the concept.

    loss = mean (v(x, t, c) - target)^2,   target = v_ref(x, empty) - eta * (v_ref(x, c) - v_ref(x, empty))

Equation 7 of Erased Stable Diffusion with velocities for noises (`testbed/erasers/_esd.py` has the sources). On a path
x = (1 - sigma) x_0 + sigma e both are affine in the score, with the same factor for every prompt, so the target is the
same negated guidance. As there, the edited model itself makes x: Euler's steps under c with guidance, stopped at a
random step.

"x" means cross-attention, through which alone a UNet reads the prompt. In a joint-attention block the text tokens'
projections have that place: queries, keys, values and output of the text side (`add_q_proj`, `add_k_proj`,
`add_v_proj`, `to_add_out`), which are trained here. The authors' own ESD-x for FLUX trains all attention layers
(`utils/esd_trainer.py` of their repository). That erases here too, but damages other concepts more: the image side's
projections serve every prompt.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional

from unerase_backend.testbed.erasers._esd import NEGATIVE_GUIDANCE, SAMPLING_GUIDANCE, negative_target
from unerase_backend.testbed.flow.erasers._registry import Concept, Subject, eraser
from unerase_backend.testbed.flow.transformer import Encoding, predict

ITERATIONS = 100
RATE = 2e-4
BATCH = 8
SAMPLING_STEPS = 20
SEED = 7
TEXT_SIDE = (".attn.add_", ".attn.to_add_out.")


@torch.no_grad()
def partial_sample(subject: Subject, both: Encoding, latents: Tensor, stop: int) -> Tensor:
    """Return latents (N, 4, 8, 8) after `stop` of the scheduler's steps, guided.

    `both` are N encodings of the empty prompt, then N of the prompts.
    """
    subject.scheduler.set_timesteps(SAMPLING_STEPS)
    for timestep in subject.scheduler.timesteps[:stop]:
        free, guided = predict(subject.transformer, torch.cat([latents, latents]), timestep, both).chunk(2)
        velocity = free + SAMPLING_GUIDANCE * (guided - free)
        latents = subject.scheduler.step(velocity, timestep, latents).prev_sample
    return latents


@eraser("esd-x")
def erase_esd_x(subject: Subject, concept: Concept, iterations: int = ITERATIONS) -> None:
    """Train the text side of every joint attention."""
    transformer = subject.transformer
    reference = copy.deepcopy(transformer)
    learned = [weight for name, weight in transformer.named_parameters() if any(part in name for part in TEXT_SIDE)]
    for weight in learned:
        weight.requires_grad_(True)
    prompts = subject.encode([template.format(name) for template in concept.plain_templates for name in concept.names])
    empty = subject.encode([""]).expand(BATCH)
    draws = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(learned, lr=RATE)
    for _ in range(iterations):
        prompt = prompts[torch.randint(len(prompts), (BATCH,), generator=draws)]
        stop = int(torch.randint(SAMPLING_STEPS, (), generator=draws))
        latents = torch.randn((BATCH, 4, 8, 8), generator=draws)
        noisy = partial_sample(subject, empty.beside(prompt), latents, stop)
        timestep = subject.scheduler.timesteps[stop]
        with torch.no_grad():
            free, conditional = predict(reference, torch.cat([noisy, noisy]), timestep, empty.beside(prompt)).chunk(2)
        target = negative_target(free, conditional, NEGATIVE_GUIDANCE)
        loss = functional.mse_loss(predict(transformer, noisy, timestep, prompt), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    transformer.requires_grad_(False)
