"""Doubled guidance: does the concept return when the prompt pulls twice as hard?"""

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_ELICITING, MODEL_CAPABILITY_GUIDANCE_SCALE, Observation
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe


@probe(
    "doubled-guidance",
    title="Doubled guidance",
    summary="One picture a case at a multiple of the guidance scale.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    needs=[MODEL_CAPABILITY_GUIDANCE_SCALE],
    pictures="unit.cases",
    rows="unit.cases * unit.steps * 2",
    parameters=[parameter("factor", "Multiple of the guidance scale.", 2.0, minimum=1.0, maximum=4.0)],
)
async def doubled_guidance(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Make one picture a case."""
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=case.prompt),
            guidance_scale=guidance_of(unit, case) * parameters["factor"],
            latent_seed=case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case in unit.cases
    ]
    samples = await models.generate(unit.model, trajectories, panel(unit.target))
    return [
        observe(unit, sample, trajectory, case_index=case.index, prompt=case.prompt)
        for case, trajectory, sample in zip(unit.cases, trajectories, samples, strict=True)
    ]
