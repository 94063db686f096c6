"""Error profile: where in the diffusion does a model predict the noise on the concept's pictures?

For each held-out picture the mean-square error of the noise prediction under the concept's prompt, early, in the middle
and late in the training schedule. A measure: its figures become a table of the report, and decide nothing.
"""

import numpy as np

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Observation,
)
from unerase_backend.evaluation.known_pictures import held_out, own_prompt
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.seeds import derive_seed

TIMESTEPS = {"early": 167, "middle": 500, "late": 833}


@probe(
    "error-profile",
    title="Error profile",
    summary="The error of the noise prediction on the concept's pictures, by time.",
    evaluation_class=EVALUATION_CLASS_MEASURE,
    pictures="0",
    rows="3 * held_out(pictures, 0)",
    parameters=[parameter("pictures", "Most pictures of the concept.", 8, minimum=1, maximum=256, integer=True)],
)
async def error_profile(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Measure every picture at three times."""
    concept = unit.target.concept
    digests, prompt = held_out(concept, parameters["pictures"]), own_prompt(concept)
    noise_seed = derive_seed(unit.seed_base, "error-profile")
    errors = await models.measure_denoising(unit.model, digests, [prompt], list(TIMESTEPS.values()), noise_seed)
    observations = []
    for index, (digest, (at_times,)) in enumerate(zip(digests, errors, strict=True)):
        observation = Observation(
            evaluation=unit.evaluation,
            role=unit.role,
            model=unit.model,
            concept=concept.name,
            case_index=index,
            status=SAMPLE_STATUS_SCORED,
            picture_digest=digest,
            prompt=prompt,
            noise_seed=noise_seed,
        )
        if np.isfinite(at_times).all():
            observation.measures.update(dict(zip(TIMESTEPS, at_times.tolist(), strict=True)))
        else:
            observation.status, observation.reason = SAMPLE_STATUS_UNSCORED, "the error is not finite"
        observations.append(observation)
    return observations
