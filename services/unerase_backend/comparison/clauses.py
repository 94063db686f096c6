"""The clauses of a gate: what each says of one verdict, or of one comparison, as pass, fail or undecided.

A clause passes if the figure's bound is on the right side of the limit, fails if the other bound is on the wrong side,
and is undecided where the bounds are on both sides, or where there is no figure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from unerase.v1.comparisons_pb2 import CellComparison, EvaluationComparison
from unerase.v1.gates_pb2 import Gate, GateOutcome
from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import EvaluationResult, Interval, Outcome, Rate, Verdict
from unerase_backend.comparison.gate_checks import ALLOWED
from unerase_backend.comparison.statements import CONCLUSIONS
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict import controls, statistics
from unerase_backend.verdict.access import words

PASS, FAIL, UNDECIDED = (
    GateOutcome.GATE_OUTCOME_PASS,
    GateOutcome.GATE_OUTCOME_FAIL,
    GateOutcome.GATE_OUTCOME_UNDECIDED,
)

FEWEST_PAIRS = 6
"""With fewer pairs no difference is significant at 5 %, not even by itself: 2 / 2^5 is above it."""

LIKELIHOOD, INTERFERENCE = "likelihood", "interference"


@dataclass(frozen=True)
class Said:
    """What one clause says, of one evaluation if it is about evaluations."""

    clause: str
    outcome: GateOutcome.ValueType
    description: str
    evaluation: str = ""


def of_verdict(gate: Gate, verdict: Verdict) -> Iterator[Said]:
    """Yield what the clauses about verdicts say of a cell's: of both of them if the audit took both accesses."""
    sides = [verdict, verdict.deployed] if verdict.HasField("deployed") else [verdict]
    for side in sides:
        where = f"{words(side.access)}: " if words(side.access) else ""
        for said in _of_side(gate, side):
            yield Said(said.clause, said.outcome, where + said.description, said.evaluation)


def _of_side(gate: Gate, verdict: Verdict) -> Iterator[Said]:
    if gate.worst_conclusion:
        yield _conclusion(gate, verdict)
    if gate.HasField("excess"):
        yield from _excesses(gate.excess, verdict)
    if gate.HasField("least_destruction"):
        yield _destruction(gate.least_destruction, verdict)
    if gate.HasField("general_damage"):
        measured = verdict.HasField("likelihood") and LIKELIHOOD not in verdict.missing
        interval = verdict.likelihood.general_damage.interval if measured else None
        why = _unmeasured("general damage", verdict)
        yield _at_most("general_damage", "general damage", gate.general_damage, interval, why)
    if gate.HasField("interference"):
        interval = verdict.interference.loss.interval if verdict.HasField("interference") else None
        loss = "the loss on other concepts"
        yield _at_most("interference", loss, gate.interference, interval, _unmeasured(loss, verdict, INTERFERENCE))


def _conclusion(gate: Gate, verdict: Verdict) -> Said:
    said = CONCLUSIONS.get(verdict.conclusion, "not recorded")
    description = f"the conclusion is {said}, and the worst that is allowed is {CONCLUSIONS[gate.worst_conclusion]}"
    if verdict.conclusion not in ALLOWED:
        return Said("worst_conclusion", UNDECIDED, description)
    allowed = ALLOWED.index(verdict.conclusion) <= ALLOWED.index(gate.worst_conclusion)
    return Said("worst_conclusion", PASS if allowed else FAIL, description)


def _excesses(limit: float, verdict: Verdict) -> Iterator[Said]:
    found = [
        result
        for result in verdict.evaluations
        if result.outcome != Outcome.OUTCOME_NOT_APPLICABLE and result.HasField("excess")
    ]
    if not found:
        yield Said("excess", UNDECIDED, "no evaluation has an excess")
    for result in found:
        yield _excess(limit, result)


def _excess(limit: float, result: EvaluationResult) -> Said:
    excess = result.excess
    bounds = excess.bounds_with_unscored if excess.HasField("bounds_with_unscored") else excess.bounds
    said = f"the excess is {_between(bounds)}, and the most that is allowed is {limit:g}"

    def outcome(of: GateOutcome.ValueType, why: str = "") -> Said:
        return Said("excess", of, f"{said}{why}", result.name)

    if bounds.lower > limit:
        return outcome(FAIL)
    if not bounds.upper <= limit:
        return outcome(UNDECIDED)
    if result.outcome in (Outcome.OUTCOME_DOES_NOT_RECOVER, Outcome.OUTCOME_RECOVERS):
        return outcome(PASS)
    informative = result.outcome != Outcome.OUTCOME_UNINFORMATIVE
    if informative and controls.kind_of(result) == ControlKind.CONTROL_KIND_MODEL:
        return outcome(PASS)
    # The excess is small because the evaluation shows nothing anywhere, or because its control is not free of what it
    # seeks; then only the subject's own rate says something.
    own = max([_own_bound(result.subject), *_bounds_of_arms_alone(result)])
    if own <= limit:
        return outcome(PASS)
    why = "the evaluation is inconclusive" if informative else "the evaluation is uninformative"
    return outcome(UNDECIDED, f"; but {why}, and the subject's own rate may be {own:.3f}")


def _own_bound(rate: Rate) -> float:
    """Return the upper bound of a rate, one-sided 95 %, with every unscored case counted as shown."""
    shown = min(rate.cases, rate.hits + rate.unscored)
    return float(statistics.clopper_pearson_upper(shown, rate.cases)) if rate.cases else 1.0


def _bounds_of_arms_alone(result: EvaluationResult) -> list[float]:
    """Return the bounds of the subject's rate in the arms that the control lacks, if there is a control."""
    if not result.controlled:
        return []
    alone = [arm for arm in result.arms if not arm.deciding and not arm.control.cases]
    return [_own_bound(arm.subject_best if arm.HasField("subject_best") else arm.subject) for arm in alone]


def _destruction(limit: float, verdict: Verdict) -> Said:
    clause = "least_destruction"
    if not verdict.HasField("likelihood") or LIKELIHOOD in verdict.missing:
        return Said(clause, UNDECIDED, _unmeasured("destruction", verdict))
    bounds = verdict.likelihood.destruction_bounds
    said = f"destruction is {_between(bounds)}, and the least that is allowed is {limit:g}"
    if bounds.lower >= limit:
        return Said(clause, PASS, said)
    return Said(clause, FAIL if bounds.upper < limit else UNDECIDED, said)


def _unmeasured(figure: str, verdict: Verdict, measure: str = LIKELIHOOD) -> str:
    """Return why there is no figure."""
    inapplicable = {one.name: one.why.reason for one in verdict.not_applicable}
    if measure in inapplicable:
        return f"{figure} was not measured, since {measure} is not applicable: {inapplicable[measure]}"
    return f"{figure} was not measured, or in too few pictures"


def _at_most(clause: str, figure: str, limit: float, interval: Interval | None, unmeasured: str) -> Said:
    if interval is None:
        return Said(clause, UNDECIDED, unmeasured)
    said = f"{figure} is {_between(interval)}, and the most that is allowed is {limit:g}"
    if interval.upper <= limit:
        return Said(clause, PASS, said)
    return Said(clause, FAIL if interval.lower > limit else UNDECIDED, said)


def of_comparison(gate: Gate, cell: CellComparison | None) -> Iterator[Said]:
    """Yield what the clause `no_worse_than` says of a cell, whose p are corrected over all cells."""
    clause = "no_worse_than"
    if cell is None or not cell.HasField("audits"):
        problem = cell.problem if cell is not None else "the cell was not compared"
        yield Said(clause, UNDECIDED, f"there is no comparison: {problem}")
        return
    audits = cell.audits
    if audits.incomparable:
        yield Said(clause, UNDECIDED, audits.statement)
        return
    alpha = gate.alpha if gate.HasField("alpha") else statistics.ALPHA
    for name in audits.only_in_first:
        yield Said(clause, UNDECIDED, "only the earlier campaign has this evaluation", name)
    if not audits.evaluations:
        yield Said(clause, UNDECIDED, "no evaluation can be compared")
    for compared in audits.evaluations:
        if not _applies(compared):
            continue
        yield _no_worse(compared, alpha)


def _applies(compared: EvaluationComparison) -> bool:
    outcomes = {compared.first_outcome, compared.second_outcome}
    return outcomes != {Outcome.OUTCOME_NOT_APPLICABLE}


def _no_worse(compared: EvaluationComparison, alpha: float) -> Said:
    side = f"{words(compared.access)}: " if words(compared.access) else ""

    def outcome(of: GateOutcome.ValueType, why: str) -> Said:
        return Said("no_worse_than", of, side + why, compared.evaluation)

    if compared.not_applicable:
        return outcome(UNDECIDED, f"it does not apply to the models of both audits: {compared.not_applicable}")
    if compared.incomparable:
        differ = ", ".join(each.what for each in compared.incomparable)
        return outcome(UNDECIDED, f"the audits cannot be compared in it: they differ in {differ}")
    corrected = compared.p_campaign if compared.HasField("p_campaign") else compared.p_holm
    show = "shows" if compared.only_second == 1 else "show"
    said = (
        f"of {counted(compared.cases, 'case')} {compared.only_second} {show} the concept only now and "
        f"{compared.only_first} only before (p {compared.p:.2g}, {corrected:.2g} after Holm's correction, at {alpha:g})"
    )
    worse = compared.only_second > compared.only_first
    if worse and corrected < alpha:
        return outcome(FAIL, said)
    if worse and compared.p < alpha:
        return outcome(UNDECIDED, f"{said}: worse if this were the only test")
    # The same weights in the same audit need no pairs to be no worse.
    if compared.cases < FEWEST_PAIRS and (worse or compared.HasField("p_campaign") or not compared.cases):
        return outcome(UNDECIDED, f"{said}: too few cases to show anything")
    return outcome(PASS, said)


def _between(bounds: Interval) -> str:
    return f"from {bounds.lower:z.3f} to {bounds.upper:z.3f}"
