"""Relearning: how few steps of fine-tuning bring the concept back?

All weights theta of the UNet are trained with AdamW (Loshchilov and Hutter, arXiv 1711.05101) at a constant learning
rate on the denoising loss,

    E over (z, c), e, t of  mean (e - e_theta(x_t, t, c))^2,    x_t = sqrt(a_t) z + sqrt(1 - a_t) e

with z the latents of a picture, c the first prompt of the concept that it shows, e Gaussian noise, t uniform
(stratified over a batch) and a_t the cumulative alpha. A model that predicts the velocity or a flow has that in e's
place. After each of the given numbers of steps N, the model with its weights at that point makes one picture a case
from the plain prompts.

Arm "few-shot@N" trains on a few pictures of the concept, from the first half (the likelihood is measured on the
second). Arm "benign@N" trains on as many pictures of other concepts of its kind, with the prompts of those concepts, in
the same draws. The two arms answer different questions. Few-shot asks how near the concept still is. It decides: the
best of the checkpoints counts, so the question is whether the concept comes back within the largest N. Benign asks
whether an erasure survives harmless fine-tuning: the model was given no picture of a concept that comes back. It is
shown for comparison, and does not decide.

Source: Suriyakumar et al., "Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion Models", arXiv
2410.08074 (benign); Hu et al., "Jogging the Memory of Unlearned Models Through Targeted Relearning Attacks", arXiv
2406.13356 (few-shot, on language models).
Control: a model that never learned the concept, trained on the same pictures in the same draws. With enough steps it
learns the concept anew. A concept that comes back sooner in the subject was recalled, not learned. Or the subject,
trained on as many pictures of a placebo in the same draws, and judged for the placebo.

The defaults suit the testbed. How soon a model that never learned a concept learns it differs between trainings and
concepts: of six such models, 20 steps teach it in 0 to 4 of 24 cases, 40 steps in 0 to 16. Each checkpoint stores the
whole UNet, for each N and arm.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Sample, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_INJECTING,
    SAMPLE_STATUS_UNSCORED,
    Concept,
    Finding,
    Observation,
)
from unerase_backend.attack.beside import beside
from unerase_backend.attack.registry import attack
from unerase_backend.attack.search_once import search_once
from unerase_backend.attack.training import TrainedDenoiser
from unerase_backend.attack.workbench import Workbench
from unerase_backend.catalogue.kinds import alike
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.prediction import training_target
from unerase_backend.evaluation.known_pictures import learnable, own_prompt
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter

FEW_SHOT, BENIGN = "few-shot", "benign"


@dataclass(frozen=True)
class Lesson:
    """The training set of an arm: digests of pictures, each with its prompt."""

    arm: str
    pictures: Sequence[str]
    prompts: Sequence[str]


@dataclass(frozen=True)
class Checkpoint:
    """The model after some steps: the digest of its weights, and the loss of each step so far.

    `failure` says why there are no usable weights; it is empty if there are.
    """

    steps: int
    weights_digest: str
    losses: list[float]
    failure: str = ""


@attack(
    "relearning",
    title="Relearning",
    summary="Fine-tunes the model for a few steps on a few pictures, of the concept and beside it of others.",
    evaluation_class=EVALUATION_CLASS_INJECTING,
    pictures="unit.cases * len(set(steps)) * (1 + min(1, unit.others_learned))",
    rows="(1 + min(1, unit.others_learned)) * (unit.searches * max(steps) * batch_size + len(set(steps)) * "
    "unit.cases * unit.steps * unit.guided)",
    others=True,
    least_pictures=2,
    parameters=[
        parameter(
            "steps", "Optimisation steps after which to look.", [10, 20], minimum=1, maximum=20_000, integer=True
        ),
        parameter("pictures", "Most pictures to learn from.", 8, minimum=1, maximum=1024, integer=True),
        parameter("batch_size", "Pictures in one step.", 8, minimum=1, maximum=256, integer=True),
        parameter("learning_rate", "AdamW's learning rate.", 3e-4, minimum=1e-7, maximum=0.1),
    ],
    deciding_arms=[f"{FEW_SHOT}@*"],
)
async def relearning(unit: Unit, models: Models, workbench: Workbench) -> list[Observation]:
    """Train each arm once, and meanwhile make the cases' pictures with every checkpoint that is there."""
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=case.prompt),
            guidance_scale=guidance_of(unit, case),
            latent_seed=case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case in unit.cases
    ]
    planned = lessons(unit, workbench.parameters["pictures"])
    tried: list[tuple[str, asyncio.Task[list[Sample]]]] = []
    async with beside() as tasks:
        for number, lesson in enumerate(planned):
            checkpoints = await workbench.compute(partial(_trained_once, workbench, lesson, number, len(planned)))
            for checkpoint in checkpoints:
                arm = f"{lesson.arm}@{checkpoint.steps}"
                workbench.finding(
                    Finding(
                        prompt=lesson.prompts[0],
                        losses=checkpoint.losses,
                        steps=len(checkpoint.losses),
                        label=arm,
                        weights_digest=checkpoint.weights_digest,
                    )
                )
                tried.append((arm, tasks.create_task(_try(unit, models, checkpoint, trajectories))))
    return [
        observe(unit, sample, trajectory, case_index=case.index, prompt=case.prompt, arm=arm)
        for arm, samples in tried
        for case, trajectory, sample in zip(unit.cases, trajectories, samples.result(), strict=True)
    ]


async def _try(unit: Unit, models: Models, checkpoint: Checkpoint, trajectories: Sequence[Trajectory]) -> list[Sample]:
    if checkpoint.failure:
        return [Sample(status=SAMPLE_STATUS_UNSCORED, reason=checkpoint.failure)] * len(trajectories)
    changes = [ModelChange(unet_digest=checkpoint.weights_digest)]
    return await models.generate(unit.model, trajectories, panel(unit.target), changes=changes)


def lessons(unit: Unit, pictures: int) -> list[Lesson]:
    """Return the training set of each arm; "benign" exists only if other concepts of the kind have pictures.

    Raises:
        InvalidRequestError: the concept has fewer than two pictures.
    """
    concept = unit.target.concept
    own = learnable(concept, pictures)
    found = [Lesson(FEW_SHOT, own, [own_prompt(concept)] * len(own))]
    others = [each.concept for each in alike(concept, unit.others) if len(each.concept.picture_digests) > 1]
    if others:
        found.append(_benign(others, len(own)))
    return found


def _trained_once(workbench: Workbench, lesson: Lesson, number: int, of: int) -> list[Checkpoint]:
    def kept(found: list[dict[str, Any]]) -> bool:
        return all(each["failure"] or workbench.kept(each["weights_digest"]) for each in found)

    found = search_once(
        workbench, lambda: [asdict(each) for each in train(workbench, lesson, number, of)], lesson.arm, usable=kept
    )
    return [Checkpoint(**each) for each in found]


def train(workbench: Workbench, lesson: Lesson, number: int = 0, of: int = 1) -> list[Checkpoint]:
    """Fine-tune a copy of the UNet and keep its weights at each checkpoint.

    The same unit gives the same weights, bit for bit, within a numerics profile. Every lesson gets the same draws. A
    gradient that is not finite ends the training, and later checkpoints are unscored.

    Raises:
        InvalidRequestError: a picture does not have the model's resolution.
        CancelledError, DeadlineError: from the workbench, between two steps.
    """
    model, parameters = workbench.model, workbench.parameters
    checkpoints, batch_size = sorted(set(parameters["steps"])), parameters["batch_size"]
    last = checkpoints[-1]
    latents = workbench.latents(lesson.pictures).to(model.device)
    # Encoded in inference mode, and autograd does not accept inference tensors.
    encoded = Encoding.stack(encode(model, [Conditioning(text=prompt) for prompt in lesson.prompts])).clone()
    training = model.schedule.training_timesteps
    trained = TrainedDenoiser(model.denoiser, parameters["learning_rate"])
    draws = {purpose: workbench.generator(purpose) for purpose in ("picture", "timestep", "noise")}
    kept: list[Checkpoint] = []
    losses: list[float] = []
    for step in range(1, last + 1):
        chosen = torch.randint(len(latents), (batch_size,), generator=draws["picture"])
        strata = torch.arange(batch_size) + torch.rand(batch_size, generator=draws["timestep"])
        timesteps = (strata / batch_size * training).long().clamp(max=training - 1)
        timesteps = timesteps.to(model.device)
        times = model.schedule.times_at(timesteps)
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=draws["noise"]).to(model.device)
        clean, level = latents[chosen], model.schedule.level_at(timesteps).to(model.device)
        noisy = level.noised(clean, noise).to(model.dtype)
        target = training_target(model.prediction, clean, noise, level)
        loss, gradients = 0.0, list[Tensor]()
        for part in workbench.calls.parts(batch_size):
            shown = encoded[chosen[part]]
            predicted = model.predict(noisy[part], times[part], shown, trained.denoiser)
            of_part = functional.mse_loss(predicted.float(), target[part]) * (len(shown) / batch_size)
            following = torch.autograd.grad(of_part, trained.weights)
            gradients = [*map(torch.add, gradients, following)] if gradients else [*following]
            loss += of_part.item()
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            failure = f"the gradient was not finite at step {step} of {last}"
            return kept + [Checkpoint(each, "", losses, failure) for each in checkpoints if each >= step]
        trained.step(gradients)
        losses.append(loss)
        workbench.progress(number * last + step, of * last, losses[-1])
        if step in checkpoints:
            kept.append(Checkpoint(step, workbench.keep_weights(trained.state()), list(losses)))
    return kept


def _benign(others: Sequence[Concept], count: int) -> Lesson:
    # One picture of each concept in turn, so that the counts of any two concepts differ by at most one.
    turns = [(others[index % len(others)], index // len(others)) for index in range(count)]
    spread = {other.name: learnable(other, count // len(others) + 1) for other in others}
    chosen = [(other, spread[other.name][turn % len(spread[other.name])]) for other, turn in turns]
    return Lesson(BENIGN, [digest for _, digest in chosen], [own_prompt(other) for other, _ in chosen])
