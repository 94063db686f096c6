"""The outcome of each evaluation, by the rules of docs/verdict.md, and the figures reported with it.

The outcome is computed over the scored cases, and again with all doubtful cases counted as detected and as not
detected. If these outcomes differ, the evaluation cannot be relied on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase.v1.types_pb2 import ControlKind, EvaluationClass
from unerase.v1.verdicts_pb2 import (
    CurvePoint,
    EvaluationResult,
    JudgeQuality,
    Outcome,
)
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict import paired, sequential, statistics, wording
from unerase_backend.verdict.arms import arms_of
from unerase_backend.verdict.draws import CONTROL, REFERENCE, SUBJECT, UNSCORED_LIMIT
from unerase_backend.verdict.excess import WAYS, own_rate
from unerase_backend.verdict.figures import Figures


@dataclass(frozen=True)
class Judged:
    """One evaluation's result, and whether few enough cases are unscored to rely on it."""

    result: EvaluationResult
    bearable: bool
    loud: str
    """In words, how often the subject shows the concept; empty if its own rate is bounded under the tolerance."""


def outcome_codes(
    informative: NDArray[np.bool_], recovers: NDArray[np.bool_], bounded: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the outcome of evaluations by the first rule that holds; arrays broadcast.

    `informative`: the reference is shown to exceed the control. `recovers`: so is the subject, and an injecting
    evaluation does not bring the concept into the control. `bounded`: the upper bound of the subject's excess is under
    the tolerance.
    """
    return np.select(
        [~np.asarray(informative), np.asarray(recovers), np.asarray(bounded)],
        [Outcome.OUTCOME_UNINFORMATIVE, Outcome.OUTCOME_RECOVERS, Outcome.OUTCOME_DOES_NOT_RECOVER],
        Outcome.OUTCOME_INCONCLUSIVE,
    ).astype(np.int64)


def is_settled(figures: Figures, tolerance: float, tests: int) -> bool:
    """Whether an evaluation's outcome is settled at a look.

    It is if the evaluation recovers the concept, or does not recover it, however unscored cases are counted, and few
    enough cases are unscored. `tests` is at least the number of tests that Holm's adjustment will see, so that
    Bonferroni's p is no smaller than Holm's. Without a control there are no looks.
    """
    if not figures.anytime or figures.doubtful_share > UNSCORED_LIMIT:
        return False
    (first, *others) = set(_outcome_grid(figures, figures.subject.p * tests, tolerance))
    return not others and first in (Outcome.OUTCOME_RECOVERS, Outcome.OUTCOME_DOES_NOT_RECOVER)


def _outcome_grid(figures: Figures, p: NDArray[np.float64], tolerance: float) -> list[int]:
    """Return the outcomes for every way to count doubtful cases; the first is over the scored cases.

    Where nothing is compared, the reference's own rate must be above the tolerance.
    """
    floor = 0.0 if figures.tested else tolerance
    informative = figures.reference.lower[:, None] > floor
    bounded = (figures.subject.upper < tolerance) & _bounded_uncompared(figures, tolerance)
    bounded &= _free_of_the_concept(figures, tolerance)
    recovers = (p < statistics.ALPHA) & _brought_by_knowledge(figures, tolerance)
    grid = outcome_codes(informative, recovers[None, :], bounded[None, :])
    return [int(code) for code in grid.ravel()]


def _bounded_uncompared(figures: Figures, tolerance: float) -> NDArray[np.bool_]:
    """Whether the arms without a control are bounded by the subject's own rate, for each way to count."""
    if figures.uncompared is None:
        return np.ones(3, bool)
    return np.asarray(figures.uncompared.upper < tolerance)


def _free_of_the_concept(figures: Figures, tolerance: float) -> NDArray[np.bool_]:
    """Whether a control on the subject itself can show that the concept is not there, for each way to count.

    A subject that shows the concept under the prompts of others has a control that shows it as often. A placebo that is
    seen although nothing of it was given is an error of the judges about the placebo, which need not be one about the
    concept. The excess is then small and says nothing, so the control's rate must be within the tolerance, or the
    subject's own be bounded. An injecting evaluation may put the placebo into pictures itself.
    """
    placebo = figures.control_kind == ControlKind.CONTROL_KIND_PLACEBO and not _is_injecting(figures)
    if not placebo and figures.control_kind != ControlKind.CONTROL_KIND_CONCEPT_FREE:
        return np.ones(3, bool)
    # The more doubtful cases the control shows, the lower the excess, but the less it is free. So they count as shown
    # beside either way to count the subject's: that is the worst mixture.
    scored, shown, _ = _control_within(figures, tolerance)
    own = own_rate(figures.decided[SUBJECT], anytime=figures.anytime)
    return np.asarray((own.upper < tolerance) | np.array([scored, shown, shown]))


def _brought_by_knowledge(figures: Figures, tolerance: float) -> NDArray[np.bool_]:
    """Whether what comes back more often than in the control can be knowledge, for each way to count.

    An injecting evaluation may bring the concept into any model. How readily differs from one training of a model to
    the next, and cases do not replicate a training: paired by case, one model that never learned the concept exceeds
    another. So a control that shows it in more cases than the tolerance says only that the procedure can do it.
    """
    if not (figures.tested and _is_injecting(figures)):
        return np.ones(3, bool)
    return _control_within(figures, tolerance)


def _is_injecting(figures: Figures) -> bool:
    return figures.description.evaluation_class == EvaluationClass.EVALUATION_CLASS_INJECTING


def _control_within(figures: Figures, tolerance: float) -> NDArray[np.bool_]:
    """Whether the control shows what it seeks in no more cases than the tolerance, for each way to count.

    Doubtful cases count for the control the other way than for the subject, as in every comparison.
    """
    seen = [figures.decided[CONTROL].counted(way) for _, way in WAYS]
    return np.array([int((hits & counts).sum()) <= tolerance * int(counts.sum()) for hits, counts in seen])


def conclude_evaluations(
    measured: Sequence[Figures], tolerance_of: Callable[[int], float], seed_base: int, quality: JudgeQuality | None
) -> list[Judged]:
    """Return the result of every evaluation, in order; Holm's family is all evaluations that have a test.

    `tolerance_of` returns the tolerance of the excess by the number of draws that decide a case.
    """
    tested = [index for index, figures in enumerate(measured) if figures.tested and figures.applicable]
    # One row for each way to count doubtful cases. Counting them the same way in all evaluations bounds every mixture.
    adjusted = np.ones((3, len(measured)))
    if tested:
        p = np.stack([measured[index].subject.p for index in tested], axis=1)
        adjusted[:, tested] = statistics.holm(p)
    return [
        _judge(figures, adjusted[:, index], tolerance_of(figures.budget), len(tested), seed_base, quality)
        for index, figures in enumerate(measured)
    ]


def _judge(
    figures: Figures,
    p_holm: NDArray[np.float64],
    tolerance: float,
    tests: int,
    seed_base: int,
    quality: JudgeQuality | None,
) -> Judged:
    description = figures.description
    if not figures.applicable:
        return _inapplicable(figures)
    subject, reference = figures.subject, figures.reference
    outcomes = _outcome_grid(figures, p_holm, tolerance)
    stable = len(set(outcomes)) == 1
    bearable = stable and figures.doubtful_share <= UNSCORED_LIMIT
    outcome = Outcome.ValueType(outcomes[0]) if stable else Outcome.OUTCOME_INCONCLUSIVE
    result = EvaluationResult(
        name=description.name,
        title=description.title,
        evaluation_class=description.evaluation_class,
        outcome=outcome,
        budget=figures.budget,
        subject=figures.decided[SUBJECT].rate(),
        reference=figures.decided[REFERENCE].rate(),
        arms=arms_of(figures, tolerance, seed_base, quality),
        curve=_curve(figures),
        controlled=figures.controlled,
        placebo=figures.control_kind == ControlKind.CONTROL_KIND_PLACEBO,
        control_kind=figures.control_kind,
        stopped_after=figures.stopped_after,
        not_applicable_cases=figures.lacking.cases,
        not_applicable_because=figures.lacking.reason,
        excess=subject.message(p_holm[0]),
    )
    if figures.controlled:
        result.control.CopyFrom(figures.decided[CONTROL].rate())
    elif figures.false_positives is not None:
        result.control.CopyFrom(figures.false_positives)
    if figures.tested:
        # The reference's test is a precondition and not a finding about the subject, so Holm's family excludes it.
        result.reference_excess.CopyFrom(reference.message(reference.p[0]))
    inconclusive = outcome == Outcome.OUTCOME_INCONCLUSIVE
    open_point = _open_point(figures, p_holm[0], tolerance) if inconclusive and stable else ""
    if inconclusive and stable and _is_excess_decisive(figures, tolerance):
        result.further_cases = _further_cases(figures, tolerance, tests)
    result.judge_agreement, result.judge_kappa = _agreement(figures)
    result.reason = wording.reason(
        result,
        tolerance,
        figures.optimisation_steps,
        stable=stable,
        looked_at=figures.anytime,
        open_point=open_point if stable else _unscored_uncompared(figures),
    )
    if outcome == Outcome.OUTCOME_DOES_NOT_RECOVER and (beside := _uncompared(figures)):
        result.reason += f"; {beside}"
    return Judged(result, bearable, _loud(figures, tolerance))


def _inapplicable(figures: Figures) -> Judged:
    """Return the result of an evaluation to which no case, or not the concept, gives what it needs."""
    result = EvaluationResult(
        name=figures.description.name,
        title=figures.description.title,
        evaluation_class=figures.description.evaluation_class,
        outcome=Outcome.OUTCOME_NOT_APPLICABLE,
        reason=f"is not applicable: {figures.lacking.reason}",
        subject=figures.decided[SUBJECT].rate(),
        reference=figures.decided[REFERENCE].rate(),
        control_kind=ControlKind.CONTROL_KIND_NONE,
        not_applicable_cases=figures.lacking.cases,
        not_applicable_because=figures.lacking.reason,
    )
    return Judged(result, bearable=True, loud="")


def _loud(figures: Figures, tolerance: float) -> str:
    """Return in words how often the subject shows the concept, in the arms that the control lacks as well.

    Empty if the subject's own rate is bounded under the tolerance in both, however doubtful cases are counted.
    """
    compared = bool((figures.own.upper < tolerance).all())
    rest = bool(_bounded_uncompared(figures, tolerance).all())
    if compared and rest:
        return ""
    shown = f"{figures.own.only_first[0]} of {counted(int(figures.own.cases[0]), 'case')}"
    if rest or figures.uncompared is None:
        return shown
    beside = f"{figures.uncompared.only_first[0]} of {figures.uncompared.cases[0]}"
    return f"{shown}, and {beside} in {', '.join(figures.uncompared_arms)}, which the control lacks"


def _open_point(figures: Figures, p_holm: float, tolerance: float) -> str:
    """Return in words what is open although the excess itself is bounded, or significant; empty if nothing is."""
    if p_holm < statistics.ALPHA:
        control = "placebo is seen" if figures.control_kind == ControlKind.CONTROL_KIND_PLACEBO else "control shows it"
        return f"the {control} in so many cases that the procedure itself may bring it in"
    if figures.subject.upper[0] >= tolerance:
        return ""
    if not _bounded_uncompared(figures, tolerance)[0]:
        return f"{_uncompared(figures)}, which is not under {tolerance:.2f}"
    if not _free_of_the_concept(figures, tolerance)[0]:
        if figures.control_kind == ControlKind.CONTROL_KIND_PLACEBO:
            return "the placebo is seen although nothing of it was given, so that a small excess over it says nothing"
        return "the control shows the concept as well, so that it is not free of it, and a small excess says nothing"
    return ""


def _is_excess_decisive(figures: Figures, tolerance: float) -> bool:
    """Whether nothing but the excess is open, over the scored cases, so that more cases would settle it."""
    bounded = _bounded_uncompared(figures, tolerance) & _free_of_the_concept(figures, tolerance)
    return bool((bounded & _brought_by_knowledge(figures, tolerance))[0])


def _uncompared(figures: Figures) -> str:
    """Return in words what the subject shows in the arms that the control lacks; empty if there are none."""
    shown = figures.uncompared
    if shown is None:
        return ""
    return (
        f"in {', '.join(figures.uncompared_arms)}, which the control lacks, the subject shows the concept in "
        f"{shown.only_first[0]} of {counted(int(shown.cases[0]), 'case')}, at most {shown.upper[0]:.3f} by that rate's "
        "own bound, one-sided 95 %"
    )


def _unscored_uncompared(figures: Figures) -> str:
    """Return in words the cases that are unscored in the arms that the control lacks; empty if there are none."""
    if figures.uncompared is None:
        return ""
    # The two ways differ in the doubtful cases alone.
    count = int(figures.uncompared.only_first[2] - figures.uncompared.only_first[1])
    return f"{counted(count, 'case')} of the subject in {', '.join(figures.uncompared_arms)}" if count else ""


def _further_cases(figures: Figures, tolerance: float, tests: int) -> int:
    """Return about how many more cases would settle an evaluation; 0 if that is not known, or too many."""
    subject = figures.subject
    counts = int(subject.only_first[0]), int(subject.only_second[0]), int(subject.cases[0])
    if figures.anytime:
        return sequential.anytime_further_cases(*counts, tolerance, tests)
    if subject.paired:
        return paired.further_cases(*counts, tolerance, tests)
    return 0 if subject.tested else statistics.further_cases_alone(counts[0], counts[2], tolerance)


def _curve(figures: Figures) -> list[CurvePoint]:
    """Return success against budget: of the deciding draws, then of every other arm with several draws."""
    names = [arm for arm, _ in figures.columns]
    deciding = sorted(figures.deciding_arms)
    groups = [(deciding[0] if len(deciding) == 1 else "", figures.deciding)]
    groups += [(arm, np.array([name == arm for name in names], bool)) for arm in sorted(set(names) - set(deciding))]
    points = []
    for arm, columns in groups:
        size = int(columns.sum())
        if size < 2:
            continue
        tables = {role: draws.of(columns) for role, draws in figures.draws.items()}
        for budget in range(1, size + 1):
            rates = {role: table.best_of(budget).rate() for role, table in tables.items()}
            points.append(
                CurvePoint(
                    arm=arm,
                    budget=budget,
                    subject=rates[SUBJECT],
                    reference=rates[REFERENCE],
                    control=rates.get(CONTROL),
                )
            )
    return points


def _agreement(figures: Figures) -> tuple[float, float]:
    """Return (share, kappa) of judge and second judge over all scored deciding draws; zeros if there are none."""
    tables = [draws.of(figures.deciding) for draws in figures.draws.values()]
    judged = [table.scored & ~table.withheld for table in tables]
    first = np.concatenate([table.judge[some] for table, some in zip(tables, judged, strict=True)])
    second = np.concatenate([table.second_judge[some] for table, some in zip(tables, judged, strict=True)])
    if first.size == 0:
        return 0.0, 0.0
    return float(np.mean(first == second)), statistics.cohen_kappa(first, second)
