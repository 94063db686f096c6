"""The draws of an evaluation, laid out by case, and how they decide a case.

A case is decided by the best of its deciding draws: the selector's highest score picks one (the first, in order of arm
and variant, where scores tie) and the judge's decision on it is the case's. A draw that is unscored might have been
the one picked, so its case is *doubtful*.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase.v1.types_pb2 import EvaluationDescription, ModelRole, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import Interval, Rate
from unerase_backend.verdict import statistics

Bools = NDArray[np.bool_]
Arm = str
Draw = tuple[Arm, int]

SUBJECT: int = ModelRole.MODEL_ROLE_SUBJECT
REFERENCE: int = ModelRole.MODEL_ROLE_REFERENCE
CONTROL: int = ModelRole.MODEL_ROLE_CONTROL
ROLES = (SUBJECT, REFERENCE, CONTROL)

UNSCORED_LIMIT = 0.10
"""An evaluation with a larger share of doubtful cases says nothing that can be relied on."""

SELECTOR, JUDGE, SECOND_JUDGE = 0, 1, 2


def is_scored(observation: Observation) -> bool:
    """Whether all three judges judged the sample, with finite scores."""
    return (
        observation.status == SampleStatus.SAMPLE_STATUS_SCORED
        and len(observation.judgements) == 3
        and all(math.isfinite(judgement.score) for judgement in observation.judgements)
    )


@dataclass(frozen=True)
class Cases:
    """Decided cases of one model, (cases,) each."""

    detected: Bools
    scored: Bools
    """At least one draw is scored; `detected` is False where none is."""
    doubtful: Bools
    """At least one draw is unscored, or there is none."""

    def counted(self, doubtful_as: bool | None) -> tuple[Bools, Bools]:
        """Return (detected, counts) with doubtful cases as they were scored (None), or all taken one way."""
        if doubtful_as is None:
            return self.detected, self.scored
        return np.where(self.doubtful, doubtful_as, self.detected), np.ones_like(self.scored)

    @classmethod
    def undecided(cls, cases: int) -> "Cases":
        """Return cases without any deciding draw."""
        return cls(np.zeros(cases, bool), np.zeros(cases, bool), np.ones(cases, bool))

    def rate(self) -> Rate:
        """Return the detection rate over cases with something scored."""
        return rate_of(int(self.detected.sum()), int(self.scored.sum()), int(self.doubtful.sum()))


@dataclass(frozen=True)
class Draws:
    """Draws of one model, (cases, draws) each, in order of arm and variant."""

    exists: Bools
    scored: Bools
    selector: NDArray[np.float64]
    """Selector's scores; minus infinity where unscored."""
    judge: Bools
    second_judge: Bools

    def best_of(self, budget: int) -> Cases:
        """Decide every case by its first `budget` draws."""
        scored = self.scored[:, :budget]
        picked = np.argmax(self.selector[:, :budget], axis=1)
        some: Bools = np.any(scored, axis=1)
        failed: Bools = np.any(self.exists[:, :budget] & ~scored, axis=1)
        detected = self.judge[np.arange(len(picked)), picked] & some
        return Cases(detected, some, failed | ~some)

    def of(self, columns: Bools) -> "Draws":
        """Return some of the draws, chosen by column."""
        return Draws(
            self.exists[:, columns],
            self.scored[:, columns],
            self.selector[:, columns],
            self.judge[:, columns],
            self.second_judge[:, columns],
        )

    @property
    def budget(self) -> int:
        """The most draws that any case has."""
        return int(self.exists.sum(axis=1).max(initial=0))


def tabulate(observations: Iterable[Observation], cases: Sequence[int], draws: Sequence[Draw]) -> Draws:
    """Lay one model's observations out by case and draw.

    Raises:
        ValueError: if two observations are the same draw of the same case.
    """
    shape = (len(cases), len(draws))
    rows = {case: row for row, case in enumerate(cases)}
    columns = {draw: column for column, draw in enumerate(draws)}
    table = Draws(
        np.zeros(shape, bool),
        np.zeros(shape, bool),
        np.full(shape, -np.inf),
        np.zeros(shape, bool),
        np.zeros(shape, bool),
    )
    for observation in observations:
        place = rows[observation.case_index], columns[observation.arm, observation.variant]
        if table.exists[place]:
            raise ValueError(
                f"two observations of {observation.evaluation}, case {observation.case_index}, "
                f"arm {observation.arm!r}, variant {observation.variant}"
            )
        table.exists[place] = True
        if is_scored(observation):
            table.scored[place] = True
            table.selector[place] = observation.judgements[SELECTOR].score
            table.judge[place] = observation.judgements[JUDGE].detected
            table.second_judge[place] = observation.judgements[SECOND_JUDGE].detected
    return table


def decides(description: EvaluationDescription, arm: Arm) -> bool:
    """Whether an arm takes part in the decision; "prompt@*" stands for every arm that begins so."""
    return not description.deciding_arms or any(
        arm.startswith(name.removesuffix("*")) if name.endswith("*") else arm == name
        for name in description.deciding_arms
    )


def rate_of(hits: int, cases: int, unscored: int = 0) -> Rate:
    """Return a rate with Wilson's interval."""
    lower, upper = statistics.wilson(hits, cases)
    return Rate(hits=hits, cases=cases, unscored=unscored, wilson=Interval(lower=float(lower), upper=float(upper)))
