"""Makes the observation of a sample."""

from unerase.internal.v1alpha1.trajectories_pb2 import Sample, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Observation


def observe(
    unit: Unit,
    sample: Sample,
    trajectory: Trajectory,
    *,
    case_index: int,
    prompt: str,
    arm: str = "",
    variant: int = 0,
    concept: str = "",
) -> Observation:
    """Return the observation of `sample`, one draw of `arm` in case `case_index`.

    `concept` is the concept looked for, by default the unit's own.
    """
    return Observation(
        evaluation=unit.evaluation,
        role=unit.role,
        model=unit.model,
        concept=concept or unit.target.concept.name,
        case_index=case_index,
        arm=arm,
        variant=variant,
        status=sample.status,
        reason=sample.reason,
        judgements=sample.judgements,
        picture_digest=sample.picture_digest,
        prompt=prompt,
        latent_seed=trajectory.latent_seed,
        noise_seed=trajectory.noise_seed,
    )
