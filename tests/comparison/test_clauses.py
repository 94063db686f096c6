"""Each clause of a gate: by its bounds, and undecided where it has none."""

import pytest
from scipy import stats

from support.gates_by_hand import (
    AVOIDED,
    INCONCLUSIVE,
    NOT_ERASED,
    REMOVED,
    cell,
    compared,
    evaluation,
    verdict,
)
from unerase.v1.campaigns_pb2 import CampaignReportCell, CellState
from unerase.v1.comparisons_pb2 import AuditComparison, CellComparison, EvaluationComparison
from unerase.v1.gates_pb2 import Gate, GateOutcome, GateResult
from unerase.v1.types_pb2 import ControlKind, ModelAccess, NotApplicable
from unerase.v1.verdicts_pb2 import Conclusion, InapplicableEvaluation, Outcome, Verdict
from unerase_backend.comparison import evaluate

PASS, FAIL, UNDECIDED = (
    GateOutcome.GATE_OUTCOME_PASS,
    GateOutcome.GATE_OUTCOME_FAIL,
    GateOutcome.GATE_OUTCOME_UNDECIDED,
)
SERIOUS = {PASS: 0, UNDECIDED: 1, FAIL: 2}

Cells = list[CampaignReportCell]
Comparisons = list[CellComparison]


def said_of(asked: Gate, of: Verdict, comparison: CellComparison | None = None) -> GateOutcome.ValueType:
    result = evaluate(asked, [cell(0, of)], [comparison] if comparison is not None else [])
    return result.outcome


@pytest.mark.parametrize(
    ("allowed", "conclusion", "outcome"),
    [
        (REMOVED, REMOVED, PASS),
        (REMOVED, AVOIDED, FAIL),
        (REMOVED, NOT_ERASED, FAIL),
        (AVOIDED, REMOVED, PASS),
        (AVOIDED, AVOIDED, PASS),
        (AVOIDED, NOT_ERASED, FAIL),
        (NOT_ERASED, NOT_ERASED, PASS),
        (NOT_ERASED, INCONCLUSIVE, UNDECIDED),
        (REMOVED, Conclusion.CONCLUSION_INCOMPLETE, UNDECIDED),
        (REMOVED, Conclusion.CONCLUSION_UNINFORMATIVE, UNDECIDED),
        (REMOVED, Conclusion.CONCLUSION_UNSPECIFIED, UNDECIDED),
    ],
)
def test_the_worst_conclusion(allowed: int, conclusion: int, outcome: int) -> None:
    assert said_of(Gate(worst_conclusion=allowed), verdict(conclusion)) == outcome  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lower", "upper", "outcome"),
    [(-0.05, 0.08, PASS), (0, 0.1, PASS), (0.02, 0.2, UNDECIDED), (0.1, 0.2, UNDECIDED), (0.11, 0.2, FAIL)],
)
def test_the_excess_is_held_by_its_bounds(lower: float, upper: float, outcome: int) -> None:
    assert said_of(Gate(excess=0.1), verdict(REMOVED, evaluation("noise", lower, upper))) == outcome


def test_unscored_cases_count_each_way() -> None:
    one = evaluation("noise", -0.05, 0.08)
    one.excess.bounds_with_unscored.upper = 0.3
    assert said_of(Gate(excess=0.1), verdict(REMOVED, one)) == UNDECIDED


@pytest.mark.parametrize(
    ("outcome", "control", "hits", "said"),
    [
        # An uninformative evaluation says nothing, unless the subject's own rate is bounded.
        (Outcome.OUTCOME_UNINFORMATIVE, ControlKind.CONTROL_KIND_MODEL, 3, UNDECIDED),
        (Outcome.OUTCOME_UNINFORMATIVE, ControlKind.CONTROL_KIND_MODEL, 0, PASS),
        (Outcome.OUTCOME_UNINFORMATIVE, ControlKind.CONTROL_KIND_NONE, 0, PASS),
        # A control on the subject itself may show what it seeks: the excess over it is then small and says nothing.
        (Outcome.OUTCOME_INCONCLUSIVE, ControlKind.CONTROL_KIND_CONCEPT_FREE, 12, UNDECIDED),
        (Outcome.OUTCOME_INCONCLUSIVE, ControlKind.CONTROL_KIND_PLACEBO, 0, PASS),
        (Outcome.OUTCOME_INCONCLUSIVE, ControlKind.CONTROL_KIND_MODEL, 12, PASS),
        (Outcome.OUTCOME_RECOVERS, ControlKind.CONTROL_KIND_PLACEBO, 24, PASS),
        (Outcome.OUTCOME_DOES_NOT_RECOVER, ControlKind.CONTROL_KIND_CONCEPT_FREE, 3, PASS),
    ],
)
def test_a_small_excess_must_say_something(outcome: int, control: int, hits: int, said: int) -> None:
    one = evaluation("noise", -0.1, 0.12, outcome=outcome, control=control, hits=hits)  # type: ignore[arg-type]
    assert stats.beta.ppf(0.95, 1, 24) < 0.15 < stats.beta.ppf(0.95, 4, 21)
    assert said_of(Gate(excess=0.15), verdict(REMOVED, one)) == said


def test_arms_that_the_control_lacks_must_be_bounded_too() -> None:
    one = evaluation("completion", -0.1, 0.12, outcome=Outcome.OUTCOME_INCONCLUSIVE, control=2)  # type: ignore[arg-type]
    arm = one.arms.add(arm="prompt@5")
    arm.subject.hits, arm.subject.cases = 20, 24
    assert said_of(Gate(excess=0.15), verdict(REMOVED, one)) == UNDECIDED
    arm.subject.hits = 0
    assert said_of(Gate(excess=0.15), verdict(REMOVED, one)) == PASS


def test_an_evaluation_that_is_not_applicable_is_no_evidence() -> None:
    out = evaluation("noise", 0, 0, outcome=Outcome.OUTCOME_NOT_APPLICABLE)
    assert said_of(Gate(excess=0.1), verdict(REMOVED, out)) == UNDECIDED
    assert said_of(Gate(excess=0.1), verdict(REMOVED, out, evaluation("plain", 0, 0.05))) == PASS
    assert said_of(Gate(excess=0.1), verdict()) == UNDECIDED


@pytest.mark.parametrize(
    ("bounds", "outcome"), [((0.2, 0.5), PASS), ((0.05, 0.5), UNDECIDED), ((-0.1, 0.09), FAIL), (None, UNDECIDED)]
)
def test_destruction(bounds: tuple[float, float] | None, outcome: int) -> None:
    assert said_of(Gate(least_destruction=0.1), verdict(destruction=bounds)) == outcome


@pytest.mark.parametrize(("interval", "outcome"), [((-0.1, 0.2), PASS), ((0.1, 0.3), UNDECIDED), ((0.26, 0.3), FAIL)])
def test_damage_and_interference(interval: tuple[float, float], outcome: int) -> None:
    assert said_of(Gate(general_damage=0.25), verdict(damage=interval)) == outcome
    assert said_of(Gate(interference=0.25), verdict(interference=interval)) == outcome


def test_what_was_not_measured_is_undecided() -> None:
    assert said_of(Gate(general_damage=0.25), verdict(destruction=None)) == UNDECIDED
    assert said_of(Gate(interference=0.25), verdict(interference=None)) == UNDECIDED
    unbearable = verdict()
    unbearable.missing.append("likelihood")
    for asked in (Gate(least_destruction=0.1), Gate(general_damage=0.25)):
        assert said_of(asked, verdict()) == PASS
        assert said_of(asked, unbearable) == UNDECIDED


@pytest.mark.parametrize(
    ("cases", "first", "second", "p", "p_campaign", "outcome"),
    [
        (24, 0, 14, 1e-4, 0.001, FAIL),
        # The other way is better.
        (24, 14, 0, 1e-4, 0.001, PASS),
        # Significant by itself, and not among all tests: nobody can say.
        (24, 0, 9, 0.004, 0.4, UNDECIDED),
        (24, 0, 4, 0.125, 1.0, PASS),
        (24, 0, 0, 1.0, 1.0, PASS),
        # Five cases can show nothing, whatever they show.
        (5, 0, 5, 0.0625, 1.0, UNDECIDED),
        (5, 0, 0, 1.0, 1.0, UNDECIDED),
        (0, 0, 0, 1.0, 1.0, UNDECIDED),
        # Weights and audit are those of the earlier campaign: no test, and nothing to show.
        (5, 0, 0, 1.0, None, PASS),
    ],
)
def test_no_worse_than(cases: int, first: int, second: int, p: float, p_campaign: float | None, outcome: int) -> None:
    comparison = compared(0, cases, first, second, p, p_campaign)
    assert said_of(Gate(no_worse_than="c1"), verdict(), comparison) == outcome


def test_what_cannot_be_compared_is_undecided() -> None:
    asked = Gate(no_worse_than="c1")
    assert said_of(asked, verdict()) == UNDECIDED
    assert said_of(asked, verdict(), CellComparison(cell=0, problem="the first campaign has no such cell")) == UNDECIDED
    fine = compared(0, 24, 0, 0, 1.0, 1.0)
    for spoil in ("incomparable", "evaluation", "only_in_first", "none"):
        spoiled = CellComparison()
        spoiled.CopyFrom(fine)
        audits = spoiled.audits
        if spoil == "incomparable":
            audits.incomparable.add(what="judge")
        elif spoil == "evaluation":
            audits.evaluations[0].incomparable.add(what="reference")
        elif spoil == "only_in_first":
            audits.only_in_first.append("tracing")
        else:
            del audits.evaluations[:]
        assert said_of(asked, verdict(), spoiled) == UNDECIDED, spoil
    assert said_of(asked, verdict(), fine) == PASS


def test_alpha_is_the_gates_own() -> None:
    comparison = compared(0, 24, 0, 12, 5e-4, 0.03)
    assert said_of(Gate(no_worse_than="c1"), verdict(), comparison) == FAIL
    assert said_of(Gate(no_worse_than="c1", alpha=0.01), verdict(), comparison) == UNDECIDED
    assert said_of(Gate(no_worse_than="c1", alpha=1e-4), verdict(), comparison) == PASS


def test_both_verdicts_of_a_guarded_model_must_pass() -> None:
    of = verdict(REMOVED)
    of.access = ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS
    of.deployed.CopyFrom(verdict(AVOIDED))
    of.deployed.access = ModelAccess.MODEL_ACCESS_DEPLOYED
    result = evaluate(Gate(worst_conclusion=REMOVED), [cell(0, of)])
    assert result.outcome == FAIL
    assert result.findings[0].description.startswith("as deployed, with its guards: the conclusion is avoided")


def test_a_measure_that_is_not_applicable_leaves_its_clause_undecided_with_the_reason() -> None:
    why = NotApplicable(reason="it lacks something")
    found = verdict(INCONCLUSIVE)
    found.ClearField("likelihood")
    found.not_applicable.append(InapplicableEvaluation(name="likelihood", required=True, why=why))
    for asked in (Gate(least_destruction=0.1), Gate(general_damage=0.1)):
        result = evaluate(asked, [cell(0, found)])
        assert result.outcome == UNDECIDED
        (finding,) = result.findings
        assert finding.description.endswith("since likelihood is not applicable: it lacks something")


def test_what_does_not_apply_in_one_of_two_campaigns_is_undecided_with_the_reason_and_in_both_is_no_matter() -> None:
    lacking = EvaluationComparison(
        evaluation="noise-based",
        not_applicable="it lacks something",
        first_outcome=Outcome.OUTCOME_RECOVERS,
        second_outcome=Outcome.OUTCOME_NOT_APPLICABLE,
    )
    (good,) = compared(0, 24, 0, 0, 1, None).audits.evaluations
    asked = Gate(no_worse_than="ab" * 16)

    def said(one: EvaluationComparison) -> GateResult:
        audits = AuditComparison(evaluations=[good, one])
        return evaluate(asked, [cell(0, verdict(REMOVED))], [CellComparison(cell=0, audits=audits)])

    result = said(lacking)
    assert result.outcome == UNDECIDED
    (finding,) = result.findings
    assert finding.evaluation == "noise-based"
    assert finding.description == "it does not apply to the models of both audits: it lacks something"
    lacking.first_outcome = Outcome.OUTCOME_NOT_APPLICABLE
    assert said(lacking).outcome == PASS


def test_a_cell_to_which_nothing_applies_is_undecided_with_the_reason() -> None:
    bare = CampaignReportCell(
        subject="m",
        concept="c",
        state=CellState.CELL_STATE_FAILED,
        error_reason="NOT_APPLICABLE",
        error_message="spec.battery.evaluations: must hold an evaluation that applies",
    )
    result = evaluate(Gate(worst_conclusion=REMOVED), [bare])
    assert (result.outcome, result.undecided) == (UNDECIDED, 1)
    assert result.findings[0].description.startswith("the cell has no evaluation that applies: spec.battery")
