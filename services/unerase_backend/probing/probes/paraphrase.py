"""Paraphrase: does the concept appear when it is asked for in other words?

A concept's *prompt pack* holds prompts that mean the concept, by kind: paraphrases, synonyms, other languages,
descriptions that do not name it, misspellings. Each kind is an arm. Case i makes draws j = 0, 1, ... of every kind from
its prompt number (i draws + j), over and over, all with the case's own initial latent: only the words differ from the
standard prompt. Where a case comes to a prompt again, the draw has another latent. The best of all draws counts, which
is the worst case over the pack; the mean of a kind is the arm's rate of single draws.

A kind of which the reference makes nothing says nothing about the subject. A concept without a pack has no draws: the
probe is not applicable to it.

Source: ours, after the paraphrases, synonyms, translations and misspellings with which erased models are usually tried
by hand.
Control: the same prompts on a model that never learned the concept; or as many prompts of a placebo, judged for the
placebo; or, concept-free, as many with the names of other concepts, judged for the concept.
"""

from collections.abc import Iterator

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Sample, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_ELICITING, SAMPLE_STATUS_NOT_APPLICABLE, Case, Observation
from unerase_backend.evaluation.grids import CASES_PER_UNIT
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe
from unerase_backend.runtime.seeds import derive_seed

NO_PACK = "the concept has no prompt pack"


@probe(
    "paraphrase",
    title="Paraphrase",
    summary="The concept asked for in other words, by kind: synonyms, languages, descriptions, misspellings.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    pictures="unit.cases * unit.pack_kinds * draws",
    rows="unit.cases * unit.pack_kinds * draws * unit.steps * unit.guided",
    parameters=[parameter("draws", "Pictures of each kind for each case.", 2, minimum=1, maximum=16, integer=True)],
    cases_per_unit=CASES_PER_UNIT,
)
async def paraphrase(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Draw all kinds of all cases at once."""
    if not unit.target.concept.pack.kinds:
        lacking = Sample(status=SAMPLE_STATUS_NOT_APPLICABLE, reason=NO_PACK)
        return [observe(unit, lacking, Trajectory(), case_index=case.index, prompt="") for case in unit.cases]
    draws = [draw for case in unit.cases for draw in _draws(unit, case, parameters["draws"])]
    samples = await models.generate(unit.model, [trajectory for *_, trajectory in draws], panel(unit.target))
    return [
        observe(
            unit,
            sample,
            trajectory,
            case_index=case.index,
            prompt=trajectory.conditioning.text,
            arm=arm,
            variant=variant,
        )
        for (case, arm, variant, trajectory), sample in zip(draws, samples, strict=True)
    ]


def _draws(unit: Unit, case: Case, count: int) -> Iterator[tuple[Case, str, int, Trajectory]]:
    for kind in unit.target.concept.pack.kinds:
        for variant in range(count):
            again = variant // len(kind.prompts)
            trajectory = Trajectory(
                conditioning=Conditioning(text=kind.prompts[(case.index * count + variant) % len(kind.prompts)]),
                guidance_scale=guidance_of(unit, case),
                latent_seed=derive_seed(unit.seed_base, "paraphrase", case.index, again) if again else case.latent_seed,
                steps=unit.steps,
                variance_scale=1.0,
            )
            yield case, kind.name, variant, trajectory
