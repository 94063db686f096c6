"""A gate against cells: the laws of the whole as properties, and what is refused."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.gates_by_hand import (
    AVOIDED,
    FAILED,
    INCONCLUSIVE,
    NOT_ERASED,
    REMOVED,
    campaigns,
    cell,
    evaluation,
    gates,
    verdict,
)
from unerase.v1.campaigns_pb2 import CampaignReportCell
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.gates_pb2 import Gate, GateOutcome, GateResult
from unerase_backend.comparison import GateEvaluation, check_gate, evaluate, gate
from unerase_backend.runtime.errors import InvalidRequestError

PASS, FAIL, UNDECIDED = (
    GateOutcome.GATE_OUTCOME_PASS,
    GateOutcome.GATE_OUTCOME_FAIL,
    GateOutcome.GATE_OUTCOME_UNDECIDED,
)
SERIOUS = {PASS: 0, UNDECIDED: 1, FAIL: 2}

Cells = list[CampaignReportCell]
Comparisons = list[CellComparison]


def test_a_result_names_the_cells_and_clauses_that_decided() -> None:
    cells = [
        cell(0, verdict(REMOVED, evaluation("noise", 0, 0.05))),
        cell(1, None, subject="broken"),
        cell(2, verdict(AVOIDED, evaluation("noise", 0.2, 0.5), evaluation("plain", 0.0, 0.3))),
    ]
    result = evaluate(Gate(worst_conclusion=REMOVED, excess=0.1, undecided=1), cells)
    assert (result.outcome, result.passed, result.failed, result.undecided) == (FAIL, 1, 1, 1)
    assert [(one.cell, one.clause, one.evaluation, one.outcome) for one in result.findings] == [
        (2, "excess", "noise", FAIL),
        (2, "worst_conclusion", "", FAIL),
        (1, "cell", "", UNDECIDED),
        (2, "excess", "plain", UNDECIDED),
    ]
    assert result.findings[0].description == "the excess is from 0.200 to 0.500, and the most that is allowed is 0.1"
    assert result.findings[2].description == "the cell failed: the model could not be loaded"
    assert result.statement == (
        "Fails: of 3 cells 1 pass, 1 fail (excess 1, worst_conclusion 1), 1 is undecided of 1 that may be."
    )
    assert result.gate.undecided == 1


@pytest.mark.parametrize(("allowed", "outcome"), [(0, UNDECIDED), (1, UNDECIDED), (2, PASS)])
def test_undecided_cells_are_allowed_up_to_a_number(allowed: int, outcome: int) -> None:
    cells = [cell(0, verdict()), cell(1, None), cell(2, None)]
    assert evaluate(Gate(worst_conclusion=REMOVED, undecided=allowed), cells).outcome == outcome


def test_a_gate_that_no_cell_passes_does_not_pass() -> None:
    assert evaluate(Gate(worst_conclusion=REMOVED, undecided=9), [cell(0, None)]).outcome == UNDECIDED
    empty = evaluate(Gate(worst_conclusion=REMOVED, undecided=9), [])
    assert (empty.outcome, empty.statement) == (UNDECIDED, "Undecided: the gate has no cell to ask about.")


def test_only_the_cells_of_its_concepts_count() -> None:
    cells = [cell(0, verdict(), concept="moon"), cell(1, verdict(NOT_ERASED), concept="ring")]
    asked = Gate(worst_conclusion=REMOVED, concepts=["moon"])
    assert evaluate(asked, cells).outcome == PASS
    assert evaluate(Gate(worst_conclusion=REMOVED), cells).outcome == FAIL
    asked.concepts.append("star")
    lacking = evaluate(asked, cells)
    assert lacking.outcome == UNDECIDED
    assert lacking.statement.endswith("; no cell of star.")


@given(gates(), campaigns())
@settings(deadline=None, max_examples=200)
def test_a_gate_passes_only_if_no_clause_fails_and_few_are_undecided(
    asked: Gate, campaign: tuple[Cells, Comparisons]
) -> None:
    """By taking one clause at a time: whatever a clause alone says of a cell, the whole gate says nothing better."""
    cells, comparisons = campaign
    whole = evaluate(asked, cells, comparisons)
    considered = [one for one in cells if not asked.concepts or one.concept in asked.concepts]
    assert whole.passed + whole.failed + whole.undecided == len(considered)
    worst: dict[int, int] = {one.index: 0 for one in considered}
    for clause in (
        "worst_conclusion",
        "excess",
        "least_destruction",
        "general_damage",
        "interference",
        "no_worse_than",
    ):
        alone = Gate(concepts=asked.concepts)
        if clause not in {field.name for field, _ in asked.ListFields()}:
            continue
        setattr(alone, clause, getattr(asked, clause))
        if clause == "no_worse_than" and asked.HasField("alpha"):
            alone.alpha = asked.alpha
        for one in considered:
            outcome = evaluate(alone, [one], comparisons).outcome
            worst[one.index] = max(worst[one.index], SERIOUS[outcome])
    counted = [list(worst.values()).count(serious) for serious in (0, 1, 2)]
    assert counted == [whole.passed, whole.undecided, whole.failed]
    if whole.outcome == PASS:
        assert whole.failed == 0
        assert whole.undecided <= asked.undecided
        assert whole.passed
        assert not any(one.outcome == FAIL for one in whole.findings)
        assert all(one.verdict.ByteSize() or one.state != FAILED for one in considered) or whole.undecided
    assert (whole.outcome == FAIL) == bool(whole.failed)


@given(gates(), campaigns(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=80)
def test_the_order_of_cells_and_evaluations_does_not_matter(
    asked: Gate, campaign: tuple[Cells, Comparisons], random: object
) -> None:
    cells, comparisons = campaign
    before = evaluate(asked, cells, comparisons)
    shuffled = [CampaignReportCell.FromString(one.SerializeToString()) for one in cells]
    for one in shuffled:
        turned = list(one.verdict.evaluations)[::-1]
        if one.HasField("verdict"):
            del one.verdict.evaluations[:]
            one.verdict.evaluations.extend(turned)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert evaluate(asked, shuffled, comparisons[::-1]) == before


LOOSER = {"excess": 1, "general_damage": 1, "interference": 1, "least_destruction": -1, "alpha": -1}


@given(gates(), campaigns(), st.sampled_from(sorted(LOOSER)), st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_a_looser_limit_is_never_harder_to_pass(
    asked: Gate, campaign: tuple[Cells, Comparisons], name: str, step: float
) -> None:
    if not asked.HasField(name):  # type: ignore[arg-type]
        return
    tight = getattr(asked, name)
    loose = Gate()
    loose.CopyFrom(asked)
    most = 0.999 if LOOSER[name] > 0 else 1e-4
    setattr(loose, name, tight + step * (most - tight) if (most - tight) * LOOSER[name] > 0 else tight)
    before, after = (evaluate(each, *campaign) for each in (asked, loose))
    assert SERIOUS[after.outcome] <= SERIOUS[before.outcome]
    assert after.passed >= before.passed
    assert after.failed <= before.failed


@given(gates(), campaigns())
@settings(deadline=None, max_examples=60)
def test_a_worse_conclusion_and_more_undecided_cells_are_looser(
    asked: Gate, campaign: tuple[Cells, Comparisons]
) -> None:
    results: list[GateResult] = []
    for conclusion, undecided in itertools.product((REMOVED, AVOIDED, NOT_ERASED), (0, 2)):
        each = Gate()
        each.CopyFrom(asked)
        each.worst_conclusion, each.undecided = conclusion, undecided
        results.append(evaluate(each, *campaign))
    for tight, loose in itertools.combinations(range(len(results)), 2):
        if tight % 2 <= loose % 2:
            assert SERIOUS[results[loose].outcome] <= SERIOUS[results[tight].outcome]


def test_findings_are_bounded_and_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_FINDINGS", 10)
    evaluation_ = GateEvaluation(Gate(worst_conclusion=REMOVED))
    for index in reversed(range(50)):
        evaluation_.add(cell(index, None if index % 2 else verdict(NOT_ERASED)))
    result = evaluation_.result()
    assert [one.cell for one in result.findings] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert (result.failed, result.undecided) == (25, 25)


# What is refused.


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Gate(), "gate"),
        (Gate(undecided=3, concepts=["moon"]), "gate"),
        (Gate(worst_conclusion=INCONCLUSIVE), "gate.worst_conclusion"),
        (Gate(excess=0), "gate.excess"),
        (Gate(excess=1), "gate.excess"),
        (Gate(excess=float("nan")), "gate.excess"),
        (Gate(excess=float("inf")), "gate.excess"),
        (Gate(least_destruction=-0.1), "gate.least_destruction"),
        (Gate(general_damage=11), "gate.general_damage"),
        (Gate(interference=1), "gate.interference"),
        (Gate(excess=0.1, alpha=0.05), "gate.alpha"),
        (Gate(no_worse_than="c1", alpha=0.6), "gate.alpha"),
        (Gate(no_worse_than="c" * 101), "gate.no_worse_than"),
        (Gate(excess=0.1, concepts=["moon", "moon"]), "gate.concepts[1]"),
        (Gate(excess=0.1, concepts=[""]), "gate.concepts[0]"),
        (Gate(excess=0.1, concepts=["star"]), "gate.concepts[0]"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused_by_field(asked: Gate, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_gate(asked, ["moon"])
    assert [violation.field for violation in caught.value.violations] == [field]
    assert caught.value.violations[0].description
    if "star" not in asked.concepts:
        with pytest.raises(InvalidRequestError):
            evaluate(asked, [])


def test_every_fault_is_named_at_once_and_where_it_is() -> None:
    asked = Gate(worst_conclusion=INCONCLUSIVE, excess=2, alpha=0.1)
    with pytest.raises(InvalidRequestError) as caught:
        check_gate(asked, field="spec.gate")
    assert [violation.field for violation in caught.value.violations] == [
        "spec.gate.worst_conclusion",
        "spec.gate.excess",
        "spec.gate.alpha",
    ]


@given(gates())
def test_every_other_gate_is_accepted(asked: Gate) -> None:
    check_gate(asked, ["moon", "ring"])
