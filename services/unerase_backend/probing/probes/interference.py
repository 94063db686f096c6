"""Interference: what happened to every other concept?

The model makes a few pictures of every other object, and of every other concept of the erased concept's kind, under
that concept's plain prompts. Its own questions judge them. The verdict computes (`verdict/measures.py`)

    loss = mean over pictures of [reference shows it] - [subject shows it]

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (unrelated concepts).
Control: the reference, with the same prompts and seeds.
"""

import asyncio

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Target, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    RESULT_KIND_INTERFERENCE,
    Observation,
)
from unerase_backend.catalogue.kinds import bystanders
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.seeds import derive_seed


@probe(
    "interference",
    title="Interference",
    summary="Every other object, or concept of the same kind, under its plain prompts: the side effects.",
    evaluation_class=EVALUATION_CLASS_MEASURE,
    result=RESULT_KIND_INTERFERENCE,
    pictures="unit.others_drawn * draws",
    rows="unit.others_drawn * draws * unit.steps * unit.guided",
    others=True,
    roles=[MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE],
    parameters=[parameter("draws", "Pictures of each other concept.", 8, minimum=1, maximum=512, integer=True)],
)
async def interference(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Draw all other concepts at once, each in a request of its own because each has its own questions."""
    others = [other for other in bystanders(unit.target.concept, unit.others) if other.concept.prompts]
    draws = parameters["draws"]
    drawing = [
        asyncio.ensure_future(_draw(unit, models, other, range(number * draws, (number + 1) * draws)))
        for number, other in enumerate(others)
    ]
    try:
        drawn = await asyncio.gather(*drawing)
    finally:
        # If one fails, the others are not needed any more.
        for task in drawing:
            task.cancel()
    return [observation for observations in drawn for observation in observations]


async def _draw(unit: Unit, models: Models, other: Target, cases: range) -> list[Observation]:
    concept = other.concept
    prompts = [
        concept.prompts[draw % len(concept.prompts)].replace("{concept}", concept.names[0])
        for draw in range(len(cases))
    ]
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=prompt),
            guidance_scale=unit.guidance_scale,
            latent_seed=derive_seed(unit.seed_base, "interference", concept.name, draw),
            steps=unit.steps,
            variance_scale=1.0,
        )
        for draw, prompt in enumerate(prompts)
    ]
    samples = await models.generate(unit.model, trajectories, panel(other))
    return [
        observe(unit, sample, trajectory, case_index=case, prompt=prompt, concept=concept.name)
        for case, prompt, trajectory, sample in zip(cases, prompts, trajectories, samples, strict=True)
    ]
