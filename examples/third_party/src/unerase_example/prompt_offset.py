"""Prompt offset: what must be added to the text encoder's output for the model to show the concept again?

All weights are frozen. One offset d, (tokens, width), is learned on the concept's pictures and prompts y,

    d* = argmin  E over z, e, t, y of  mean (e - e_model(x_t, t, c(y) + d))^2,    x_t = sqrt(a_t) z + sqrt(1 - a_t) e

by Adam from d = 0, and is then added to the encodings of held-out prompts. With latents z of the concept's pictures, e
Gaussian noise, t uniform, a_t the cumulative alpha, c the text encoder.
"""

import torch
from torch import Tensor
from torch.nn import functional

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_INJECTING, Finding, Observation
from unerase_backend.attack.registry import attack
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.encoding import STATES, Encoding
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter


@attack(
    "prompt-offset",
    title="Prompt offset",
    summary="Learns what to add to the encoded prompt and adds it to unseen prompts.",
    evaluation_class=EVALUATION_CLASS_INJECTING,
    pictures="unit.cases",
    rows="steps * batch_size + unit.cases * unit.steps * unit.guided",
    parameters=[
        parameter("steps", "Optimisation steps.", 100, minimum=1, maximum=10_000, integer=True),
        parameter("batch_size", "Pictures in one step.", 16, minimum=1, maximum=256, integer=True),
        parameter("learning_rate", "Adam's learning rate.", 0.05, minimum=1e-6, maximum=1.0),
    ],
)
async def prompt_offset(unit: Unit, models: Models, workbench: Workbench) -> list[Observation]:
    """Learn the offset, then make one picture a case with it."""
    offset, losses = await workbench.compute(lambda: learn(unit, workbench))
    workbench.finding(Finding(embedding=to_message(offset), losses=losses[:100], steps=len(losses)))
    prompts = [case.held_out_prompt for case in unit.cases]
    encoded = await workbench.compute(lambda: encode(workbench.model, [Conditioning(text=text) for text in prompts]))
    trajectories = [
        Trajectory(
            conditioning=Conditioning(embedding=to_message(encoding.states.float().cpu() + offset)),
            guidance_scale=guidance_of(unit, case),
            latent_seed=case.held_out_latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case, encoding in zip(unit.cases, encoded, strict=True)
    ]
    samples = await models.generate(unit.model, trajectories, panel(unit.target))
    return [
        observe(unit, sample, trajectory, case_index=case.index, prompt=case.held_out_prompt)
        for case, trajectory, sample in zip(unit.cases, trajectories, samples, strict=True)
    ]


def learn(unit: Unit, workbench: Workbench) -> tuple[Tensor, list[float]]:
    """Return the offset, (tokens, width) in float32 on the CPU, and the loss of each step."""
    model, concept, parameters = workbench.model, unit.target.concept, workbench.parameters
    steps, batch_size = parameters["steps"], parameters["batch_size"]
    latents = workbench.latents(concept.picture_digests).to(model.device)
    texts = [template.replace("{concept}", concept.names[0]) for template in concept.prompts]
    encoded = Encoding.stack(encode(model, [Conditioning(text=text) for text in texts])).states.clone().float()
    offset = torch.zeros_like(encoded[0]).requires_grad_()
    optimiser = torch.optim.Adam([offset], parameters["learning_rate"])
    draws = workbench.generator("training")
    losses: list[float] = []
    for step in range(steps):
        chosen = torch.randint(len(latents), (batch_size,), generator=draws)
        prompts = torch.randint(len(encoded), (batch_size,), generator=draws)
        timesteps = torch.randint(model.schedule.training_timesteps, (batch_size,), generator=draws).to(model.device)
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=draws).to(model.device)
        noisy = model.schedule.level_at(timesteps).noised(latents[chosen], noise).to(model.dtype)
        moved = Encoding({STATES: (encoded[prompts] + offset).to(model.dtype)})
        predicted = model.predict(noisy, model.schedule.times_at(timesteps), moved)
        loss = functional.mse_loss(predicted.float(), noise)
        (offset.grad,) = torch.autograd.grad(loss, [offset])
        optimiser.step()
        losses.append(loss.item())
        workbench.progress(step + 1, steps, losses[-1])
    return offset.detach().cpu(), losses
