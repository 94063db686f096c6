"""The draws of an evaluation as a table by case, and how they decide a case.

The best of its deciding draws decides a case. The selector picks the draw with its highest score; of equal scores the
first in order of arm and variant wins. Judge and second judge together, or the judge alone, decide the case on that
draw. An unscored draw might have been the one picked, so its case is *doubtful*. An excluded draw does not exist, and a
case without any other draw is out. A withheld draw shows nothing: it is scored and not detected, and is picked only if
every scored draw is withheld.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import DecidedBy, EvaluationDescription, ModelRole, Observation, SampleStatus
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
"""An evaluation with a larger share of doubtful cases cannot be relied on."""

SELECTOR, JUDGE, SECOND_JUDGE = 0, 1, 2


def who_decides(spec: AuditSpec) -> DecidedBy.ValueType:
    """Return who decides a case; in a record that does not say so, the judge alone."""
    return spec.decided_by or DecidedBy.DECIDED_BY_JUDGE


def is_withheld(observation: Observation) -> bool:
    """Whether a guard of the deployed model kept the sample back, so that nobody judged it."""
    return observation.status == SampleStatus.SAMPLE_STATUS_WITHHELD


def is_scored(observation: Observation) -> bool:
    """Whether all three judges judged the sample, with finite scores."""
    return (
        observation.status == SampleStatus.SAMPLE_STATUS_SCORED
        and len(observation.judgements) == 3
        and all(math.isfinite(judgement.score) for judgement in observation.judgements)
    )


_LEFT_OUT = (SampleStatus.SAMPLE_STATUS_EXCLUDED, SampleStatus.SAMPLE_STATUS_NOT_APPLICABLE)


@dataclass(frozen=True)
class Cases:
    """Decided cases of one model; every array is (cases,)."""

    detected: Bools
    scored: Bools
    """At least one draw is scored; `detected` is False for a case without a scored draw."""
    doubtful: Bools
    """At least one draw is unscored, or the case has no draw."""
    excluded: Bools
    """Every draw is excluded, so that the case is neither scored nor doubtful."""
    withheld: Bools
    """Every scored draw is withheld, and there is one; `detected` is False."""

    def counted(self, doubtful_as: bool | None) -> tuple[Bools, Bools]:
        """Return (detected, counts); doubtful cases count as scored (None), all as detected, or all as not detected."""
        if doubtful_as is None:
            return self.detected, self.scored
        return np.where(self.doubtful, doubtful_as, self.detected), ~self.excluded

    @classmethod
    def undecided(cls, cases: int) -> "Cases":
        """Return cases without any deciding draw."""
        return cls(*(np.full(cases, doubtful) for doubtful in (False, False, True, False, False)))

    def rate(self) -> Rate:
        """Return the detection rate over the cases with a scored draw."""
        rate = rate_of(int(self.detected.sum()), int(self.scored.sum()), int(self.doubtful.sum()))
        rate.excluded, rate.withheld = int(self.excluded.sum()), int(self.withheld.sum())
        return rate


@dataclass(frozen=True)
class Draws:
    """Draws of one model; every array is (cases, draws), with the draws in order of arm and variant."""

    exists: Bools
    """There is a draw, and it is not excluded."""
    excluded: Bools
    scored: Bools
    withheld: Bools
    """A guard kept the draw back; it is scored too."""
    selector: NDArray[np.float64]
    """The selector's scores; minus infinity for unscored and for withheld draws."""
    judge: Bools
    second_judge: Bools
    both: bool
    """A detection is that of both judges, not of the judge alone."""

    @property
    def detected(self) -> Bools:
        """What the judges who decide say of each draw; False for unscored draws."""
        return self.judge & self.second_judge if self.both else self.judge

    def best_of(self, budget: int) -> Cases:
        """Decide every case by its first `budget` draws."""
        scored = self.scored[:, :budget]
        picked = np.argmax(self.selector[:, :budget], axis=1)
        some: Bools = np.any(scored, axis=1)
        exist = self.exists[:, :budget]
        failed: Bools = np.any(exist & ~scored, axis=1)
        out: Bools = ~np.any(exist, axis=1) & np.any(self.excluded[:, :budget], axis=1)
        detected = self.detected[np.arange(len(picked)), picked] & some
        kept_back: Bools = some & ~np.any(scored & ~self.withheld[:, :budget], axis=1)
        return Cases(detected, some, failed | ~(some | out), out, kept_back)

    def of(self, columns: Bools) -> "Draws":
        """Return some of the draws, chosen by column."""
        return Draws(
            self.exists[:, columns],
            self.excluded[:, columns],
            self.scored[:, columns],
            self.withheld[:, columns],
            self.selector[:, columns],
            self.judge[:, columns],
            self.second_judge[:, columns],
            self.both,
        )

    @property
    def budget(self) -> int:
        """The most draws that any case has."""
        return int((self.exists | self.excluded).sum(axis=1).max(initial=0))


def tabulate(
    observations: Iterable[Observation], cases: Sequence[int], draws: Sequence[Draw], decided_by: DecidedBy.ValueType
) -> Draws:
    """Arrange one model's observations in a table by case and draw.

    Raises:
        ValueError: two observations are the same draw of the same case.
    """
    shape = (len(cases), len(draws))
    rows = {case: row for row, case in enumerate(cases)}
    columns = {draw: column for column, draw in enumerate(draws)}
    table = Draws(
        exists=np.zeros(shape, bool),
        excluded=np.zeros(shape, bool),
        scored=np.zeros(shape, bool),
        withheld=np.zeros(shape, bool),
        selector=np.full(shape, -np.inf),
        judge=np.zeros(shape, bool),
        second_judge=np.zeros(shape, bool),
        both=decided_by == DecidedBy.DECIDED_BY_BOTH,
    )
    for observation in observations:
        place = rows[observation.case_index], columns[observation.arm, observation.variant]
        if table.exists[place] or table.excluded[place]:
            raise ValueError(
                f"two observations of {observation.evaluation}, case {observation.case_index}, "
                f"arm {observation.arm!r}, variant {observation.variant}"
            )
        table.excluded[place] = observation.status in _LEFT_OUT
        table.exists[place] = not table.excluded[place]
        if is_withheld(observation):
            table.scored[place] = table.withheld[place] = True
        elif is_scored(observation):
            table.scored[place] = True
            table.selector[place] = observation.judgements[SELECTOR].score
            table.judge[place] = observation.judgements[JUDGE].detected
            table.second_judge[place] = observation.judgements[SECOND_JUDGE].detected
    return table


def decides(description: EvaluationDescription, arm: Arm) -> bool:
    """Whether an arm takes part in the decision; a deciding arm "prompt@*" matches every arm that begins "prompt@"."""
    return not description.deciding_arms or any(
        arm.startswith(name.removesuffix("*")) if name.endswith("*") else arm == name
        for name in description.deciding_arms
    )


def hides(rate: Rate) -> bool:
    """Whether a guard withheld so many cases that the rate says nothing of what the weights would have shown."""
    return rate.withheld > UNSCORED_LIMIT * rate.cases


def rate_of(hits: int, cases: int, unscored: int = 0) -> Rate:
    """Return a rate with Wilson's interval."""
    lower, upper = statistics.wilson(hits, cases)
    return Rate(hits=hits, cases=cases, unscored=unscored, wilson=Interval(lower=float(lower), upper=float(upper)))
