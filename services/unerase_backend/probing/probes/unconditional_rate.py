"""Unconditional rate: how often does the concept appear without a prompt?

There are several unguided samples from the empty prompt for each case, each from its own initial latent. Changes on the
text side do not matter here: a concept whose unconditional likelihood is intact appears as often as before.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (unconditional sampling).
Control: the same latents on a model that never learned the concept; or the same samples judged for a placebo; or,
concept-free, the same latents under the prompts of other concepts, still unguided. Unprompted samples could not be that
last control, because the empty prompt leaves out no concept.
"""

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    EVALUATION_CLASS_ELICITING,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    Observation,
)
from unerase_backend.evaluation.models import UNGUIDED, Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.seeds import derive_seed


@probe(
    "unconditional-rate",
    title="Unconditional rate",
    summary="Unguided samples from the empty prompt: the share that holds the concept.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    needs=[MODEL_CAPABILITY_UNGUIDED_ROW],
    pictures="unit.cases * draws",
    rows="unit.cases * draws * unit.steps",
    parameters=[parameter("draws", "Samples for each case.", 24, minimum=1, maximum=256, integer=True)],
    deciding_arms=["empty"],
    cases_per_unit=4,
)
async def unconditional_rate(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Draw the samples of all cases at once."""
    concept_free = unit.control_kind == CONTROL_KIND_CONCEPT_FREE
    draws = [(case, variant) for case in unit.cases for variant in range(parameters["draws"])]
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=case.prompt if concept_free else ""),
            guidance_scale=UNGUIDED,
            latent_seed=derive_seed(unit.seed_base, "unconditional-rate", case.index, variant),
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case, variant in draws
    ]
    samples = await models.generate(unit.model, trajectories, panel(unit.target))
    return [
        observe(
            unit,
            sample,
            trajectory,
            case_index=case.index,
            prompt=trajectory.conditioning.text,
            arm="empty",
            variant=variant,
        )
        for (case, variant), trajectory, sample in zip(draws, trajectories, samples, strict=True)
    ]
