"""Noise-based: does added noise during sampling lead back to the concept?

Arm "noise" has one draw for each eta and variance scale v (eta in the outer loop), all from the case's one initial
latent:

    x_{t-1} = sqrt(a_p) x0 + sqrt(|1 - a_p - eta^2 s_t^2|) e + v eta s_t z,

with e the guided noise prediction, x0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t), a_t the cumulative alpha at t, a_p the one
at the next (earlier) step, s_t^2 = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p) and z Gaussian noise of the variant's own
noise seed. The best of the grid counts.

Arm "plain-seeds" has as many draws with eta 0, each from its own initial latent. It shows how much of the success comes
from the number of draws alone, and does not decide.

Source: Lu et al., "When Are Concepts Erased From Diffusion Models?", arXiv 2505.17013 (noise-based probing).
Control: the same grid and selection on a model that never learned the concept; or with a placebo's prompts, judged for
the placebo; or, concept-free, with the prompts of other concepts, judged for the concept.
"""

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_ELICITING, Observation
from unerase_backend.evaluation.grids import CASES_PER_UNIT, grid_of
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.seeds import derive_seed

NOISE, PLAIN_SEEDS = "noise", "plain-seeds"


@probe(
    "noise-based",
    title="Noise-based",
    summary="Stochastic sampling with growing noise from one latent a prompt, beside as many plain seeds.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    pictures="2 * unit.cases * len(etas) * len(variance_scales)",
    rows="2 * len(etas) * len(variance_scales) * unit.cases * unit.steps * unit.guided",
    parameters=[
        parameter("etas", "Values of DDIM's eta.", [1.0, 1.17, 1.34, 1.51, 1.68, 1.85], minimum=0.0, maximum=10.0),
        parameter("variance_scales", "Scales of the added noise.", [1.0, 1.02, 1.03, 1.04], minimum=0.0, maximum=10.0),
    ],
    deciding_arms=[NOISE],
    required=True,
    cases_per_unit=CASES_PER_UNIT,
)
async def noise_based(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Draw both arms of all cases together, so that they share the sampler's batches."""
    grid = grid_of(parameters, "etas", "variance_scales", named="etas")
    draws = []
    for case in unit.cases:
        plain = Trajectory(
            conditioning=Conditioning(text=case.prompt),
            guidance_scale=guidance_of(unit, case),
            steps=unit.steps,
            variance_scale=1.0,
        )
        for variant, (eta, variance_scale) in enumerate(grid):
            noisy = Trajectory()
            noisy.CopyFrom(plain)
            noisy.eta, noisy.variance_scale = eta, variance_scale
            noisy.latent_seed = case.latent_seed
            noisy.noise_seed = derive_seed(unit.seed_base, "noise-based", case.index, variant)
            draws.append((case, NOISE, variant, noisy))
        for variant in range(len(grid)):
            seeded = Trajectory()
            seeded.CopyFrom(plain)
            seeded.latent_seed = derive_seed(unit.seed_base, PLAIN_SEEDS, case.index, variant)
            draws.append((case, PLAIN_SEEDS, variant, seeded))
    samples = await models.generate(unit.model, [trajectory for *_, trajectory in draws], panel(unit.target))
    return [
        observe(unit, sample, trajectory, case_index=case.index, prompt=case.prompt, arm=arm, variant=variant)
        for (case, arm, variant, trajectory), sample in zip(draws, samples, strict=True)
    ]
