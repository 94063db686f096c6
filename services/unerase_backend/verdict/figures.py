"""The figures of one evaluation: the decided cases of each model, and the comparisons between models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unerase.v1.types_pb2 import EvaluationClass, EvaluationDescription, Observation
from unerase.v1.verdicts_pb2 import JudgeQuality, Rate
from unerase_backend.verdict import sequential
from unerase_backend.verdict.draws import (
    CONTROL,
    REFERENCE,
    ROLES,
    SUBJECT,
    Bools,
    Cases,
    Draw,
    Draws,
    decides,
    rate_of,
    tabulate,
)
from unerase_backend.verdict.excess import Comparison, compare_pairs, compare_with_pictures


@dataclass(frozen=True)
class Figures:
    """One evaluation's figures, before Holm's adjustment over the battery."""

    description: EvaluationDescription
    draws: Mapping[int, Draws]
    columns: Sequence[Draw]
    deciding: Bools
    decided: Mapping[int, Cases]
    subject: Comparison | None
    reference: Comparison | None
    controlled: bool
    anytime: bool
    """The audit looked at the evaluation after every few cases, so its bounds and p hold at every look."""
    stopped_after: int
    """The number of cases after which the audit stopped it; 0 if all cases ran."""
    optimisation_steps: int
    """An attack's optimisation steps; 0 if it has no such parameter."""
    placebo: bool
    """The control is the same procedure for a concept that neither model knows."""
    concept_free: Rate | None
    """False positives on pictures without the concept, if these take the control's place."""

    @property
    def doubtful_share(self) -> float:
        """The share of cases in which the decision on some model is doubtful; 1 if there are no cases."""
        doubtful = np.any([cases.doubtful for cases in self.decided.values()], axis=0)
        return float(doubtful.mean()) if doubtful.size else 1.0

    @property
    def budget(self) -> int:
        """The number of deciding draws a case."""
        return max((draws.of(self.deciding).budget for draws in self.draws.values()), default=0)


def figures_of(
    description: EvaluationDescription,
    observations: Sequence[Observation],
    expected_cases: int,
    quality: JudgeQuality | None,
    optimisation_steps: int = 0,
    concept: str = "",
    *,
    looked_at: bool = False,
) -> Figures:
    """Return one evaluation's figures from its observations.

    A case below `expected_cases` without an observation counts as unscored; 0 expects only the observed cases. A
    control observed for another concept than `concept` is a placebo. `looked_at` is True if the audit looked after
    every few cases: cases beyond the last look were not run, and do not count as unscored.
    """
    anytime = looked_at and is_looked_at(description, observations)
    run = cases_run(description, observations, expected_cases) if anytime else expected_cases
    cases = sorted({observation.case_index for observation in observations} | set(range(run)))
    columns = sorted({(observation.arm, observation.variant) for observation in observations})
    deciding = np.array([decides(description, arm) for arm, _ in columns], bool)
    by_role: dict[int, list[Observation]] = {role: [] for role in ROLES}
    for observation in observations:
        by_role[observation.role].append(observation)
    controlled = bool(by_role[CONTROL])
    roles = ROLES if controlled else (SUBJECT, REFERENCE)
    draws = {role: tabulate(by_role[role], cases, columns) for role in roles}
    decided = {
        role: table.of(deciding).best_of(int(deciding.sum())) if deciding.any() else Cases.undecided(len(cases))
        for role, table in draws.items()
    }
    subject = reference = None
    concept_free = None
    if controlled:
        subject = compare_pairs(decided[SUBJECT], decided[CONTROL], anytime=anytime)
        reference = compare_pairs(decided[REFERENCE], decided[CONTROL], anytime=anytime)
    elif quality is not None and _is_comparable_with_pictures(description, deciding):
        other, near = quality.specificity, quality.near_miss_specificity
        pictures = other.cases + near.cases
        false_positives = pictures - other.hits - near.hits
        if pictures:
            concept_free = rate_of(false_positives, pictures, other.unscored + near.unscored)
            subject = compare_with_pictures(decided[SUBJECT], false_positives, pictures)
            reference = compare_with_pictures(decided[REFERENCE], false_positives, pictures)
    return Figures(
        description,
        draws,
        columns,
        deciding,
        decided,
        subject,
        reference,
        controlled,
        anytime,
        run if run < expected_cases else 0,
        optimisation_steps,
        any(observation.concept != concept for observation in by_role[CONTROL]),
        concept_free,
    )


def _is_comparable_with_pictures(description: EvaluationDescription, deciding: Bools) -> bool:
    """Whether the judge's errors on pictures can take the control's place.

    They can if one draw decides a case and the evaluation gives the model nothing of the concept.
    """
    injecting = description.evaluation_class == EvaluationClass.EVALUATION_CLASS_INJECTING
    return int(deciding.sum()) == 1 and not injecting


def is_looked_at(description: EvaluationDescription, observations: Iterable[Observation]) -> bool:
    """Whether a sequential audit may stop the evaluation: its cases span several units, and it has a control."""
    return description.cases_per_unit > 0 and any(observation.role == CONTROL for observation in observations)


def cases_run(description: EvaluationDescription, observations: Iterable[Observation], cases: int) -> int:
    """Return how many cases ran up to the last look; all of them if there are no observations."""
    last = max((observation.case_index for observation in observations), default=cases - 1)
    between = sequential.cases_between_looks(description.cases_per_unit)
    return min(cases, (last // between + 1) * between)
