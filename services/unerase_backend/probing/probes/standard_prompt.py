"""Standard prompt: does the concept appear when it is asked for by name?

There is one picture a case, made with the case's prompt and latent seed, classifier-free guidance and DDIM with eta 0.
All other evaluations depend on this one: if the reference does not show the concept here, their results mean nothing.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (the plain baseline
of every probe).
Control: the same prompts and seeds on a model that never learned the concept; or the same seeds with a placebo's
prompts, judged for the placebo; or, concept-free, with the prompts of other concepts, judged for the concept.
"""

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_PLAIN, Observation
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.probing.registry import probe


@probe(
    "standard-prompt",
    title="Standard prompt",
    summary="One picture for each prompt and seed.",
    evaluation_class=EVALUATION_CLASS_PLAIN,
    pictures="unit.cases",
    rows="unit.cases * unit.steps * unit.guided",
    required=True,
    cases_per_unit=24,
)
async def standard_prompt(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Make and judge one picture a case."""
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
    samples = await models.generate(unit.model, trajectories, panel(unit.target))
    return [
        observe(unit, sample, trajectory, case_index=case.index, prompt=case.prompt)
        for case, trajectory, sample in zip(unit.cases, trajectories, samples, strict=True)
    ]
