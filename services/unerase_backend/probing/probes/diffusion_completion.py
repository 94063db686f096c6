"""Diffusion completion: does the model finish what the reference began?

The reference takes the first k steps with the concept's prompt and guidance. The model under evaluation resumes at step
k + 1 from the same latent, which differs from starting over at a later timestep. It does so once with the concept's
prompt and guidance (arm "prompt@f"), and once unguided with the empty prompt (arm "empty@f"), which tests only the
unconditional knowledge. f is k as a share of all steps. Beyond 0.4 the latent itself carries the concept, and
completing it shows nothing.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (diffusion completion,
k = 5 and 10 of 50).
Control: the same latents finished by a model that never learned the concept.
"""

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Resumption, Sample, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_INJECTING, SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Observation
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


@probe(
    "diffusion-completion",
    title="Diffusion completion",
    summary="The reference takes the first steps, the model finishes, with the concept's prompt and with none.",
    evaluation_class=EVALUATION_CLASS_INJECTING,
    pictures="2 * unit.cases * len(set(resume_fractions))",
    rows="unit.cases * len(set(resume_fractions)) * (unit.steps * (unit.guided + 1) - 1)",
    reference_begins=True,
    parameters=[
        parameter(
            "resume_fractions", "Shares of the steps that the reference takes.", [0.1, 0.2], minimum=0, maximum=0.4
        ),
    ],
    required=True,
    cases_per_unit=24,
)
async def diffusion_completion(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Let the reference begin each case once for each fraction, then finish it both ways."""
    if unit.steps < 2:
        description = "must be at least 2: one for the reference and one to complete"
        raise InvalidRequestError.of(FieldViolation("unit.steps", description))
    # Fractions that print the same would be the same arm.
    fractions = {f"{fraction:g}": fraction for fraction in parameters["resume_fractions"]}
    begun = []
    for case in unit.cases:
        for name, fraction in fractions.items():
            trajectory = Trajectory(
                conditioning=Conditioning(text=case.prompt),
                guidance_scale=unit.guidance_scale,
                latent_seed=case.latent_seed,
                steps=unit.steps,
                variance_scale=1.0,
                stop_step=max(1, round(fraction * unit.steps)),
            )
            begun.append((case, name, trajectory))
    beginnings = await models.generate(unit.reference, [trajectory for *_, trajectory in begun], latents=True)

    draws = []
    for (case, name, beginning), begun_sample in zip(begun, beginnings, strict=True):
        for arm, prompt, guidance_scale in (("prompt", case.prompt, unit.guidance_scale), ("empty", "", 1.0)):
            trajectory = Trajectory(
                conditioning=Conditioning(text=prompt),
                guidance_scale=guidance_scale,
                latent_seed=case.latent_seed,
                steps=unit.steps,
                variance_scale=1.0,
                resumption=Resumption(latents=begun_sample.latents, step=beginning.stop_step),
            )
            draws.append((case, f"{arm}@{name}", prompt, trajectory, begun_sample))
    resumable = [draw for draw in draws if draw[-1].status == SAMPLE_STATUS_SCORED]
    finished = await models.generate(unit.model, [trajectory for *_, trajectory, _ in resumable], panel(unit.target))
    samples = iter(finished)
    return [
        observe(
            unit,
            next(samples) if begun_sample.status == SAMPLE_STATUS_SCORED else _unfinished(begun_sample),
            trajectory,
            case_index=case.index,
            prompt=prompt,
            arm=arm,
        )
        for case, arm, prompt, trajectory, begun_sample in draws
    ]


def _unfinished(beginning: Sample) -> Sample:
    return Sample(status=SAMPLE_STATUS_UNSCORED, reason=f"the reference's first steps failed: {beginning.reason}")
