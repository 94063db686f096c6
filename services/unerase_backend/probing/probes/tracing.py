"""Tracing: at which strength of the erasure is the concept lost, and what takes its place?

The model at strength s, 0 <= s <= 1, interpolates every weight of the UNet and the text encoder:

    w(s) = w_reference + s (w_subject - w_reference)

Strength 0 is the reference itself, and strength 1 the subject itself. At every strength the model makes pictures from
the cases' plain prompts and latents (arm "strength@s"), which are labelled by what they show
(`evaluation/label_assignment.py`). It is also measured on a few held-out pictures (arm "likelihood@s", as in
`likelihood`). From these the verdict computes curves of detection, similarity, labels, and the two mechanisms relative
to strength 0 (`verdict/tracing.py`).

The likelihood belongs to no case, so the unit that holds the first case measures it.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (a concept traced through the
strengths of its erasure); interpolation between a model and what was fine-tuned from it: Ilharco et al., arXiv
2212.04089.
Control: strength 0.
"""

from collections.abc import Iterable

from unerase.internal.v1alpha1.generation_pb2 import Interpolation, ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    MODEL_ROLE_SUBJECT,
    RESULT_KIND_TRACING,
    Observation,
)
from unerase_backend.evaluation.known_pictures import observe_losses
from unerase_backend.evaluation.label_assignment import assign_labels
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe

# A whole batch of the sampler at its default size, because only one interpolated model is in memory at a time.
CASES_PER_UNIT = 24


@probe(
    "tracing",
    title="Tracing",
    summary="The way from the reference to the subject in weights: detection, labels and likelihood at each strength.",
    evaluation_class=EVALUATION_CLASS_MEASURE,
    needs=[MODEL_CAPABILITY_UNGUIDED_ROW],
    result=RESULT_KIND_TRACING,
    pictures="unit.cases * len(set([0] + strengths))",
    rows="len(set([0] + strengths)) * (unit.cases * unit.steps * unit.guided + unit.first * 2 * timesteps * "
    "held_out(pictures, other_pictures))",
    others=True,
    roles=[MODEL_ROLE_SUBJECT],
    weights_only=True,
    least_pictures=1,
    parameters=[
        parameter(
            "strengths",
            "Shares of the subject's weights, the rest the reference's; 0 is always among them.",
            [point / 10 for point in range(11)],
            minimum=0.0,
            maximum=1.0,
        ),
        parameter("timesteps", "Points of the even grid of timesteps.", 10, minimum=1, maximum=200, integer=True),
        parameter("pictures", "Most held-out pictures of the concept.", 8, minimum=2, maximum=1024, integer=True),
        parameter(
            "other_pictures", "Most held-out pictures of each other concept.", 2, minimum=1, maximum=1024, integer=True
        ),
    ],
    cases_per_unit=CASES_PER_UNIT,
)
async def tracing(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Take one strength after the other, so that only one interpolated model is in memory at a time."""
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
    observations: list[Observation] = []
    for strength in traced_strengths(parameters["strengths"]):
        model, changes = _at(unit, strength)
        samples = await models.generate(model, trajectories, panel(unit.target), changes=changes)
        pictured = [
            observe(unit, sample, trajectory, case_index=case.index, prompt=case.prompt, arm=f"strength@{strength:g}")
            for case, trajectory, sample in zip(unit.cases, trajectories, samples, strict=True)
        ]
        await assign_labels(unit, models, pictured)
        observations += pictured
        if any(case.index == 0 for case in unit.cases):
            observations += await observe_losses(
                unit,
                models,
                model,
                timesteps=parameters["timesteps"],
                pictures=parameters["pictures"],
                other_pictures=parameters["other_pictures"],
                arms=(f"likelihood@{strength:g}",) * 2,
                changes=changes,
            )
    return observations


def traced_strengths(strengths: Iterable[float]) -> list[float]:
    """Return the distinct strengths, rounded to four decimals, in ascending order from 0."""
    return sorted({0.0, *(round(strength, 4) for strength in strengths)})


def _at(unit: Unit, strength: float) -> tuple[str, list[ModelChange]]:
    # Strengths 0 and 1 are the models themselves, because the subject may have its own VAE.
    if strength in (0, 1):
        return (unit.model if strength else unit.reference), []
    return unit.reference, [ModelChange(interpolation=Interpolation(model=unit.model, share=strength))]
