"""The figures of one evaluation: the decided cases of each model, and the comparisons between models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import ControlKind, EvaluationClass, EvaluationDescription, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import Rate
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
    tabulate,
)
from unerase_backend.verdict.excess import Comparison, compare_pairs, compare_with_pictures, own_rate


@dataclass(frozen=True)
class Lacking:
    """Cases that lack what an evaluation needs: their number, and the reason of the first of them."""

    cases: int
    reason: str

    @classmethod
    def of(cls, observations: Iterable[Observation]) -> "Lacking":
        """Count the cases of one model that have nothing but observations of this status."""
        reasons: dict[int, str] = {}
        others = set()
        for observation in observations:
            if observation.status == SampleStatus.SAMPLE_STATUS_NOT_APPLICABLE:
                reasons.setdefault(observation.case_index, observation.reason)
            else:
                others.add(observation.case_index)
        lacking = sorted(reasons.keys() - others)
        return cls(len(lacking), reasons[lacking[0]] if lacking else "")


@dataclass(frozen=True)
class Figures:
    """One evaluation's figures, before Holm's adjustment over the battery."""

    description: EvaluationDescription
    draws: Mapping[int, Draws]
    columns: Sequence[Draw]
    deciding: Bools
    decided: Mapping[int, Cases]
    subject: Comparison
    """Over the control or, without one, over pictures without the concept, or else its own rate."""
    reference: Comparison
    control_kind: ControlKind.ValueType
    anytime: bool
    """The audit looked at the evaluation after every few cases, so its bounds and p hold at every look."""
    stopped_after: int
    """The number of cases after which the audit stopped it; 0 if all cases ran."""
    optimisation_steps: int
    """An attack's optimisation steps; 0 if it has no such parameter."""
    false_positives: Rate | None
    """False positives on pictures without the concept, if these take the control's place."""
    uncompared_arms: tuple[str, ...]
    """Arms that would decide, but in which the control has no draws."""
    uncompared: Comparison | None
    """The subject's own rate over those arms; None if there are none."""
    lacking: Lacking
    """The subject's cases to which the evaluation does not apply."""

    @property
    def applicable(self) -> bool:
        """Whether the evaluation applies to any case."""
        return not 0 < len(self.decided[SUBJECT].excluded) == self.lacking.cases

    @property
    def own(self) -> Comparison:
        """The subject's own rate over the deciding arms."""
        return own_rate(self.decided[SUBJECT])

    @property
    def controlled(self) -> bool:
        """Whether the evaluation had a control."""
        return self.control_kind != ControlKind.CONTROL_KIND_NONE

    @property
    def tested(self) -> bool:
        """Whether the subject is compared with something, so that it can be found to exceed it."""
        return self.subject.tested

    @property
    def deciding_arms(self) -> set[str]:
        """The arms that decide."""
        return {arm for (arm, _), deciding in zip(self.columns, self.deciding, strict=True) if deciding}

    @property
    def doubtful_share(self) -> float:
        """The share of cases in which the decision on some model is doubtful; 1 if there are no cases.

        A case that is out for the subject does not count, whatever a control with words of its own did in it.
        """
        doubtful = np.any([cases.doubtful for cases in self.decided.values()], axis=0)
        out = self.decided[SUBJECT].excluded
        return float((doubtful & ~out).sum() / max(int((~out).sum()), 1)) if doubtful.size else 1.0

    @property
    def budget(self) -> int:
        """The number of deciding draws a case."""
        return max((draws.of(self.deciding).budget for draws in self.draws.values()), default=0)


@dataclass(frozen=True)
class Table:
    """One evaluation's draws by case, and the cases that they decide."""

    rows: Sequence[int]
    """The indices of the cases, ascending: those of every array in `draws` and `decided`."""
    columns: Sequence[Draw]
    would_decide: Bools
    """The draws of the arms that the evaluation names as deciding."""
    deciding: Bools
    """Those of them in whose arm the control has draws, if there is a control."""
    draws: Mapping[int, Draws]
    decided: Mapping[int, Cases]
    control_kind: ControlKind.ValueType
    anytime: bool
    """The audit looked at the evaluation after every few cases."""
    run: int
    """The number of cases that ran, up to the last look."""

    @classmethod
    def of(
        cls,
        description: EvaluationDescription,
        observations: Sequence[Observation],
        spec: AuditSpec,
        *,
        cases: int,
        looked_at: bool,
        only: int | None = None,
    ) -> "Table":
        """Arrange one evaluation's observations, of all roles or of one; the arguments are those of `figures_of`."""
        anytime = looked_at and is_looked_at(description, observations)
        run = cases_run(description, observations, cases) if anytime else cases
        rows = sorted({observation.case_index for observation in observations} | set(range(run)))
        columns = sorted({(observation.arm, observation.variant) for observation in observations})
        by_role: dict[int, list[Observation]] = {role: [] for role in ROLES}
        for observation in observations:
            by_role[observation.role].append(observation)
        # What the control did not do cannot be compared with it.
        controlled_arms = {observation.arm for observation in by_role[CONTROL]}
        would_decide = np.array([decides(description, arm) for arm, _ in columns], bool)
        comparable = np.array([arm in controlled_arms or not controlled_arms for arm, _ in columns], bool)
        deciding = would_decide & comparable
        roles = [role for role in ROLES if only in (None, role) and (role != CONTROL or by_role[CONTROL])]
        draws = {role: tabulate(by_role[role], rows, columns, spec.decided_by) for role in roles}
        return cls(
            rows,
            columns,
            would_decide,
            deciding,
            draws,
            {role: _best(drawn, deciding) for role, drawn in draws.items()},
            control_kind_of(by_role[CONTROL], spec),
            anytime,
            run,
        )


def figures_of(
    description: EvaluationDescription,
    observations: Sequence[Observation],
    spec: AuditSpec,
    *,
    cases: int,
    false_positives: Rate | None = None,
    optimisation_steps: int = 0,
    looked_at: bool = False,
) -> Figures:
    """Return one evaluation's figures from its observations, in the audit that `spec` asked for.

    A case below `cases` without an observation counts as unscored; 0 expects only the observed cases. `looked_at` is
    True if the audit looked after every few cases: cases beyond the last look were not run, and do not count as
    unscored.
    """
    table = Table.of(description, observations, spec, cases=cases, looked_at=looked_at)
    columns, would_decide, deciding = table.columns, table.would_decide, table.deciding
    draws, decided, anytime = table.draws, table.decided, table.anytime
    left_out = would_decide & ~deciding
    beside = None
    if CONTROL not in draws and _is_comparable_with_pictures(description, deciding):
        beside = false_positives
    subject, reference = (_compared(decided, role, beside, anytime) for role in (SUBJECT, REFERENCE))
    return Figures(
        description,
        draws,
        columns,
        deciding,
        decided,
        subject,
        reference,
        table.control_kind,
        anytime,
        table.run if table.run < cases else 0,
        optimisation_steps,
        beside,
        tuple(sorted({arm for (arm, _), left in zip(columns, left_out, strict=True) if left})),
        own_rate(_best(draws[SUBJECT], left_out), anytime=anytime) if left_out.any() else None,
        Lacking.of([observation for observation in observations if observation.role == SUBJECT]),
    )


def _best(draws: Draws, columns: Bools) -> Cases:
    chosen = draws.of(columns)
    return chosen.best_of(int(columns.sum())) if columns.any() else Cases.undecided(len(draws.exists))


def _compared(decided: Mapping[int, Cases], role: int, false_positives: Rate | None, anytime: bool) -> Comparison:
    if CONTROL in decided:
        return compare_pairs(decided[role], decided[CONTROL], anytime=anytime)
    if false_positives is not None:
        return compare_with_pictures(decided[role], false_positives.hits, false_positives.cases)
    return own_rate(decided[role])


def control_kind_of(control: Sequence[Observation], spec: AuditSpec) -> ControlKind.ValueType:
    """Return the kind of an evaluation's control from its observations: those of the control's role.

    A control of the subject itself is a placebo if it was asked for another concept, and else concept-free: other
    prompts, the audit's concept.
    """
    if not control:
        return ControlKind.CONTROL_KIND_NONE
    if spec.control and any(observation.model == spec.control for observation in control):
        return ControlKind.CONTROL_KIND_MODEL
    if any(observation.concept != spec.concept for observation in control):
        return ControlKind.CONTROL_KIND_PLACEBO
    return ControlKind.CONTROL_KIND_CONCEPT_FREE


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
