"""Observations of measures become figures: likelihood, interference, the judges' quality."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase.v1.types_pb2 import Observation, SampleStatus
from unerase.v1.verdicts_pb2 import (
    Estimate,
    InterferenceItem,
    InterferenceResult,
    Interval,
    JudgeQuality,
    LikelihoodResult,
    Rate,
)
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import statistics
from unerase_backend.verdict.draws import CONTROL, JUDGE, REFERENCE, SUBJECT, UNSCORED_LIMIT, is_scored, rate_of

Floats = NDArray[np.float64]
Picture = tuple[str, str, int]

RESAMPLES = 4000


@dataclass(frozen=True)
class Mechanisms:
    """Where one model stands on the plane, with the bootstrap's draws behind it."""

    destruction: float
    general_damage: float
    lost_pull: float
    destruction_draws: Floats
    general_damage_draws: Floats
    lost_pull_draws: Floats | None
    """None where the reference's own pull is not above 0, so that there is nothing to lose."""

    @property
    def destruction_bounds(self) -> tuple[float, float]:
        """One-sided 95 % bounds of destruction."""
        lower, upper = np.quantile(self.destruction_draws, [statistics.ALPHA, 1 - statistics.ALPHA])
        return float(lower), float(upper)


def mechanisms(
    concept: Floats,
    concept_reference: Floats,
    other: Floats,
    other_reference: Floats,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Mechanisms:
    """Measure destruction, general damage and lost pull of a model against the reference.

    `concept` and `concept_reference` are (pictures, 2): the mean noise-prediction error of each picture of the concept
    under the empty prompt and under the concept's. `other` and `other_reference` are (pictures,): that of other
    pictures under the empty prompt. Pictures are resampled, those of the concept and the others each on their own.
    """
    log_ratios = np.log(concept[:, 0] / concept_reference[:, 0])
    pull = np.log(concept[:, 0] / concept[:, 1])
    pull_reference = np.log(concept_reference[:, 0] / concept_reference[:, 1])
    of_concept = np.stack([log_ratios, pull, pull_reference], axis=1)
    of_others = np.log(other / other_reference)[:, None]

    damage = float(of_others.mean())
    draws = statistics.resampled_means(of_concept, generator, resamples)
    damage_draws = statistics.resampled_means(of_others, generator, resamples)[:, 0]
    has_pull = pull_reference.mean() > 0 and float(np.quantile(draws[:, 2], statistics.ALPHA / 2)) > 0
    return Mechanisms(
        destruction=float(log_ratios.mean()) - damage,
        general_damage=damage,
        lost_pull=1 - float(pull.mean() / pull_reference.mean()) if has_pull else math.nan,
        destruction_draws=draws[:, 0] - damage_draws,
        general_damage_draws=damage_draws,
        lost_pull_draws=1 - draws[:, 1] / draws[:, 2] if has_pull else None,
    )


def likelihood(observations: Sequence[Observation], seed_base: int) -> tuple[LikelihoodResult | None, bool]:
    """Return the likelihood result, and whether it can bear its unscored pictures.

    A picture counts where subject and reference are both measured. None where no picture of the concept, or none of
    another, is left.
    """
    losses = {
        role: {
            _picture(observation): losses_of(observation, pulled=observation.arm == "concept")
            for observation in observations
            if observation.role == role
        }
        for role in (SUBJECT, REFERENCE, CONTROL)
    }
    pictures = sorted(losses[SUBJECT].keys() | losses[REFERENCE].keys())
    paired = _paired(losses, SUBJECT, pictures)
    bearable = bool(pictures) and 1 - len(paired) / len(pictures) <= UNSCORED_LIMIT
    subject = _mechanisms(losses, SUBJECT, paired, seed_base)
    if subject is None:
        return None, False
    lower, upper = subject.destruction_bounds
    result = LikelihoodResult(
        destruction=estimate(subject.destruction, subject.destruction_draws),
        destruction_bounds=Interval(lower=lower, upper=upper),
        general_damage=estimate(subject.general_damage, subject.general_damage_draws),
        concept_pictures=sum(_of_concept(picture) for picture in paired),
        other_pictures=sum(not _of_concept(picture) for picture in paired),
    )
    if subject.lost_pull_draws is not None:
        result.lost_pull.CopyFrom(estimate(subject.lost_pull, subject.lost_pull_draws))
    control = _mechanisms(losses, CONTROL, _paired(losses, CONTROL, pictures), seed_base)
    if control is not None:
        result.control_destruction.CopyFrom(estimate(control.destruction, control.destruction_draws))
        result.control_general_damage.CopyFrom(estimate(control.general_damage, control.general_damage_draws))
        if control.lost_pull_draws is not None:
            result.control_lost_pull.CopyFrom(estimate(control.lost_pull, control.lost_pull_draws))
    return result, bearable


def _mechanisms(
    losses: Mapping[int, Mapping[Picture, tuple[float, float] | None]],
    role: int,
    pictures: Sequence[Picture],
    seed_base: int,
) -> Mechanisms | None:
    of_concept = [picture for picture in pictures if _of_concept(picture)]
    others = [picture for picture in pictures if not _of_concept(picture)]
    if not of_concept or not others:
        return None
    model, reference = losses[role], losses[REFERENCE]
    return mechanisms(
        np.array([model[picture] for picture in of_concept], float),
        np.array([reference[picture] for picture in of_concept], float),
        np.array([model[picture] for picture in others], float)[:, 0],
        np.array([reference[picture] for picture in others], float)[:, 0],
        # The same resamples for subject and control, so that equal models stand on the same point.
        np.random.default_rng(derive_seed(seed_base, "verdict", "likelihood")),
    )


def _picture(observation: Observation) -> Picture:
    return observation.arm, observation.concept, observation.case_index


def _of_concept(picture: Picture) -> bool:
    return picture[0] == "concept"


def _paired(
    losses: Mapping[int, Mapping[Picture, tuple[float, float] | None]], role: int, pictures: Iterable[Picture]
) -> list[Picture]:
    return [
        picture
        for picture in pictures
        if losses[role].get(picture) is not None and losses[REFERENCE].get(picture) is not None
    ]


def losses_of(observation: Observation, *, pulled: bool) -> tuple[float, float] | None:
    """Return a picture's errors under the empty prompt and its own; None where one that counts is missing.

    Only the concept's pictures are `pulled`: the prompt's loss of others is not looked at.
    """
    if observation.status != SampleStatus.SAMPLE_STATUS_SCORED:
        return None
    empty = observation.measures.get("loss_empty", math.nan)
    prompt = observation.measures.get("loss_prompt", math.nan) if pulled else empty
    usable = math.isfinite(empty) and math.isfinite(prompt) and empty > 0 and prompt > 0
    return (empty, prompt) if usable else None


def estimate(value: float, draws: Floats) -> Estimate:
    """Return a figure with the percentiles of its draws."""
    lower, upper = np.quantile(draws, [statistics.ALPHA / 2, 1 - statistics.ALPHA / 2])
    return Estimate(value=value, interval=Interval(lower=float(lower), upper=float(upper)))


def interference(observations: Sequence[Observation]) -> InterferenceResult | None:
    """Return what happened to the other concepts; None where no case is scored for both models.

    The loss is detection by the reference less detection by the subject, paired by case and draw. Its interval is two
    one-sided bounds at 2.5 % (the concepts are fixed, their cases independent).
    """
    tables: dict[int, dict[tuple[str, int, str, int], Observation]] = {SUBJECT: {}, REFERENCE: {}}
    for observation in observations:
        if observation.role in tables:
            key = (observation.concept, observation.case_index, observation.arm, observation.variant)
            tables[observation.role][key] = observation
    subject, reference = tables[SUBJECT], tables[REFERENCE]
    every = sorted(subject.keys() | reference.keys())
    pairs = [key for key in every if _scored_in(subject, key) and _scored_in(reference, key)]
    if not pairs:
        return None
    lost = sum(_detected(reference[key]) and not _detected(subject[key]) for key in pairs)
    won = sum(_detected(subject[key]) and not _detected(reference[key]) for key in pairs)
    lower, upper = statistics.excess_bounds(lost, len(pairs), won, len(pairs), statistics.ALPHA / 2)
    return InterferenceResult(
        loss=Estimate(value=(lost - won) / len(pairs), interval=Interval(lower=float(lower), upper=float(upper))),
        subject_similarity=mean_similarity(subject[key] for key in pairs),
        reference_similarity=mean_similarity(reference[key] for key in pairs),
        concepts=[
            InterferenceItem(
                concept=concept,
                subject=_concept_rate(subject, [key for key in every if key[0] == concept]),
                reference=_concept_rate(reference, [key for key in every if key[0] == concept]),
            )
            for concept in sorted({key[0] for key in every})
        ],
    )


def _scored_in(table: Mapping[tuple[str, int, str, int], Observation], key: tuple[str, int, str, int]) -> bool:
    return key in table and is_scored(table[key])


def _concept_rate(
    table: Mapping[tuple[str, int, str, int], Observation], keys: Sequence[tuple[str, int, str, int]]
) -> Rate:
    scored = [table[key] for key in keys if _scored_in(table, key)]
    return rate_of(sum(map(_detected, scored)), len(scored), len(keys) - len(scored))


def _detected(observation: Observation) -> bool:
    return observation.judgements[JUDGE].detected


def mean_similarity(observations: Iterable[Observation]) -> float:
    """Return the mean similarity by the first judge that gives one; 0 where none does."""
    similarities = [
        next((judgement.similarity for judgement in observation.judgements if judgement.HasField("similarity")), None)
        for observation in observations
    ]
    given = [similarity for similarity in similarities if similarity is not None]
    return float(np.mean(given)) if given else 0.0


def judge_quality(observations: Sequence[Observation]) -> list[JudgeQuality]:
    """Return each judge's quality on known pictures, in the order of the panel: selector, judge, second judge."""
    names = next(
        ([j.judge for j in observation.judgements] for observation in observations if is_scored(observation)), []
    )
    return [
        JudgeQuality(
            judge=name,
            sensitivity=_correct(observations, position, "concept", expected=True),
            specificity=_correct(observations, position, "other", expected=False),
            near_miss_specificity=_correct(observations, position, "near-miss", expected=False),
        )
        for position, name in enumerate(names)
    ]


def _correct(observations: Sequence[Observation], position: int, arm: str, *, expected: bool) -> Rate:
    of_arm = [observation for observation in observations if observation.arm == arm]
    scored = [observation for observation in of_arm if is_scored(observation)]
    hits = sum(observation.judgements[position].detected == expected for observation in scored)
    return rate_of(hits, len(scored), len(of_arm) - len(scored))
