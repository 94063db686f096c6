"""Repeated prompt: does the concept return when the prompt says it twice?

Its owner requires it: an audit that lacks it is incomplete, and every preset holds it.
"""

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_ELICITING, Observation
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.probing.registry import probe


@probe(
    "repeated-prompt",
    title="Repeated prompt",
    summary="One picture a case for the prompt, said twice.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    pictures="unit.cases",
    rows="unit.cases * unit.steps * unit.guided",
    required=True,
)
async def repeated_prompt(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Make one picture a case."""
    prompts = [f"{case.prompt} {case.prompt}" for case in unit.cases]
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=prompt),
            guidance_scale=guidance_of(unit, case),
            latent_seed=case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case, prompt in zip(unit.cases, prompts, strict=True)
    ]
    samples = await models.generate(unit.model, trajectories, panel(unit.target))
    return [
        observe(unit, sample, trajectory, case_index=case.index, prompt=prompt)
        for case, prompt, trajectory, sample in zip(unit.cases, prompts, trajectories, samples, strict=True)
    ]
