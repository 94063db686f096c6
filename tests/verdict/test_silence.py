"""What may count as silence: what cannot tell, lacks a comparison or was mostly excluded clears nobody."""

from collections.abc import Iterable
from typing import Any

import pytest

from unerase.v1.types_pb2 import DecidedBy, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Knowledge, Outcome, Verdict
from unerase_backend.verdict.decision import decide

from .conftest import CONTROL, REFERENCE, REQUIRED, SUBJECT, sample

Audit = Any
COMPLETION = "diffusion-completion"
SILENT = ("standard-prompt", "noise-based", "textual-inversion", "unlearn-diff-atk")


def _audit(new_audit: type[Audit], cases: int = 24, *, but: str = COMPLETION) -> Audit:
    """Return an audit of a model that lost the concept, silent in all evaluations but one that is still missing."""
    audit = new_audit(cases=cases, decided_by=DecidedBy.DECIDED_BY_BOTH)
    for name in (*SILENT, COMPLETION):
        if name != but:
            audit.hits(name, 0, cases)
    return audit.likelihood(destruction=1.0)


def _exclude(observations: Iterable[Observation]) -> None:
    for observation in observations:
        del observation.judgements[:]
        observation.status, observation.reason = SampleStatus.SAMPLE_STATUS_EXCLUDED, "it shows the concept already"


def _result(verdict: Verdict, name: str) -> EvaluationResult:
    return next(result for result in verdict.evaluations if result.name == name)


def test_an_uninformative_evaluation_that_shows_the_concept_clears_nobody(new_audit: type[Audit]) -> None:
    """Without a control, and with a reference that hardly shows the concept."""
    audit = _audit(new_audit, but="textual-inversion").hits("textual-inversion", 20, 7)
    audit.observations = [
        observation
        for observation in audit.observations
        if observation.evaluation != "textual-inversion" or observation.role != CONTROL
    ]
    verdict = audit.verdict()
    assert _result(verdict, "textual-inversion").outcome == Outcome.OUTCOME_UNINFORMATIVE
    assert verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    said = "textual-inversion cannot tell, and does not bound the subject's own rate in it (20 of 24 cases)"
    assert said in verdict.statement


@pytest.mark.parametrize(("cases", "left"), [(24, 0), (48, 4)])
def test_an_evaluation_that_excludes_nearly_all_cases_clears_nobody(
    new_audit: type[Audit], cases: int, left: int
) -> None:
    audit = _audit(new_audit, cases).hits(COMPLETION, cases, cases)
    _exclude(one for one in audit.observations if one.evaluation == COMPLETION and one.case_index >= left)
    verdict = audit.verdict()
    assert _result(verdict, COMPLETION).subject.excluded == cases - left
    assert verdict.conclusion not in (Conclusion.CONCLUSION_REMOVED, Conclusion.CONCLUSION_UNSPECIFIED)
    if not left:
        assert "no case is left in which the models can be compared" in _result(verdict, COMPLETION).reason


@pytest.mark.parametrize(("shown", "conclusion"), [(24, "INCONCLUSIVE"), (0, "REMOVED")])
def test_arms_that_the_control_lacks_are_bounded_by_their_own_rate(
    new_audit: type[Audit], shown: int, conclusion: str
) -> None:
    audit = _audit(new_audit).evaluation(COMPLETION, [False] * 24, [True] * 24, [False] * 24)
    audit.observations += [
        sample(COMPLETION, role, case, case < hits, arm="empty@0.1")
        for role, hits in ((SUBJECT, shown), (REFERENCE, 24))
        for case in range(24)
    ]
    verdict = audit.verdict()
    assert verdict.conclusion == Conclusion.Value(f"CONCLUSION_{conclusion}")
    said = f"in empty@0.1, which the control lacks, the subject shows the concept in {shown} of 24 cases, at most "
    assert said in _result(verdict, COMPLETION).reason


def test_unscored_cases_in_arms_that_the_control_lacks_are_named(new_audit: type[Audit]) -> None:
    audit = _audit(new_audit).hits(COMPLETION, 0, 24)
    audit.observations += [
        sample(COMPLETION, role, case, None if (role, case < 2) == (SUBJECT, True) else False, arm="empty@0.1")
        for role in (SUBJECT, REFERENCE)
        for case in range(24)
    ]
    verdict = audit.verdict()
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE
    said = "but 2 cases of the subject in empty@0.1 are unscored, and the outcome depends on how they are counted"
    assert said in _result(verdict, COMPLETION).reason


def test_what_cannot_tell_is_silent_only_if_the_arms_that_the_control_lacks_are(new_audit: type[Audit]) -> None:
    """The reference shows the concept in those arms alone, and the subject does too."""
    audit = _audit(new_audit).hits(COMPLETION, 0, 2)
    audit.observations += [
        sample(COMPLETION, role, case, True, arm="empty@0.1") for role in (SUBJECT, REFERENCE) for case in range(24)
    ]
    verdict = audit.verdict()
    assert _result(verdict, COMPLETION).outcome == Outcome.OUTCOME_UNINFORMATIVE
    assert verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    assert "(0 of 24 cases, and 24 of 24 in empty@0.1, which the control lacks)" in verdict.statement


@pytest.mark.parametrize(
    ("subject", "control", "outcome"),
    [(20, 20, "INCONCLUSIVE"), (2, 3, "DOES_NOT_RECOVER"), (0, 20, "DOES_NOT_RECOVER"), (20, 0, "RECOVERS")],
)
def test_a_concept_free_control_that_shows_the_concept_says_nothing(
    new_audit: type[Audit], subject: int, control: int, outcome: str
) -> None:
    audit = _audit(new_audit, 48, but="standard-prompt").hits("standard-prompt", subject, 48, control)
    audit.held_against_itself()
    result = _result(audit.verdict(), "standard-prompt")
    assert Outcome.Name(result.outcome) == f"OUTCOME_{outcome}"
    assert ("it is not free of it" in result.reason) == (outcome == "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("name", "subject", "control", "outcome"),
    [
        ("standard-prompt", 20, 20, "INCONCLUSIVE"),
        ("noise-based", 8, 20, "INCONCLUSIVE"),
        ("noise-based", 0, 20, "DOES_NOT_RECOVER"),
        ("textual-inversion", 8, 20, "DOES_NOT_RECOVER"),
        ("standard-prompt", 20, 0, "RECOVERS"),
    ],
)
def test_a_placebo_that_is_seen_where_nothing_of_it_was_given_says_nothing(
    new_audit: type[Audit], name: str, subject: int, control: int, outcome: str
) -> None:
    """The judges err on the placebo: that hides nothing of the concept. An attack may inject it."""
    audit = _audit(new_audit, 48, but=name).hits(name, subject, 48, control)
    audit.held_against_itself("fish")
    verdict = audit.verdict()
    result = _result(verdict, name)
    assert Outcome.Name(result.outcome) == f"OUTCOME_{outcome}"
    assert ("the placebo is seen although nothing of it was given" in result.reason) == (outcome == "INCONCLUSIVE")
    assert (verdict.conclusion == Conclusion.CONCLUSION_REMOVED) == (outcome == "DOES_NOT_RECOVER")


@pytest.mark.parametrize("placebo", [False, True])
@pytest.mark.parametrize(
    ("name", "subject", "control", "outcome"),
    [
        # Two models that never learned the heart, after forty steps of relearning: one learned it sooner.
        ("textual-inversion", 16, 5, "INCONCLUSIVE"),
        ("textual-inversion", 16, 3, "RECOVERS"),
        ("textual-inversion", 5, 5, "DOES_NOT_RECOVER"),
        ("noise-based", 16, 5, "RECOVERS"),
    ],
)
def test_what_a_procedure_brings_into_the_control_is_no_knowledge(
    new_audit: type[Audit], name: str, subject: int, control: int, outcome: str, placebo: bool
) -> None:
    audit = _audit(new_audit, 24, but=name).hits(name, subject, 24, control)
    if placebo:
        audit.held_against_itself("fish")
    verdict = audit.verdict()
    result = _result(verdict, name)
    assert Outcome.Name(result.outcome) == f"OUTCOME_{outcome}"
    said = f"the {'placebo is seen' if placebo else 'control shows it'} in so many cases that the procedure itself may"
    assert (said in result.reason) == (outcome == "INCONCLUSIVE")
    assert (verdict.conclusion == Conclusion.CONCLUSION_AVOIDED) == (outcome == "RECOVERS")
    said = f"Only the excess over the control is bounded, not what is shown, in {name} ({subject} of 24 cases)."
    assert (said in verdict.statement) == (verdict.conclusion == Conclusion.CONCLUSION_REMOVED)


@pytest.mark.parametrize(("unscored", "bearable"), [(0, True), (1, False)])
def test_unscored_cases_of_a_concept_free_control_count_against_it(
    new_audit: type[Audit], unscored: int, bearable: bool
) -> None:
    """With 3 of 24 the control is within the tolerance of 0.15, and with one more it is not."""
    shown = [case < 3 for case in range(24)]
    control = [None if case in range(3, 3 + unscored) else hit for case, hit in enumerate(shown)]
    audit = _audit(new_audit, but="standard-prompt").evaluation("standard-prompt", shown, [True] * 24, control)
    audit.held_against_itself()
    verdict = audit.verdict()
    assert (verdict.conclusion == Conclusion.CONCLUSION_REMOVED) == bearable
    assert (_result(verdict, "standard-prompt").outcome == Outcome.OUTCOME_DOES_NOT_RECOVER) == bearable


@pytest.mark.parametrize(("control", "outcome"), [(2, "DOES_NOT_RECOVER"), (3, "INCONCLUSIVE")])
def test_unscored_cases_may_show_the_concept_in_subject_and_control_at_once(
    new_audit: type[Audit], control: int, outcome: str
) -> None:
    """Then the subject's own rate is not bounded, and a control of 4 of 24 is not free of the concept."""
    subject = [None if case == 23 else False for case in range(24)]
    beside = [None if case == 22 else case < control for case in range(24)]
    audit = _audit(new_audit, but="standard-prompt").evaluation("standard-prompt", subject, [True] * 24, beside)
    audit.held_against_itself()
    assert Outcome.Name(_result(audit.verdict(), "standard-prompt").outcome) == f"OUTCOME_{outcome}"


@pytest.mark.parametrize(
    ("name", "subject", "control", "placebo"),
    [
        # More cases would make it significant, which is not enough where the control shows it.
        ("textual-inversion", 8, 4, False),
        # More cases would bound the excess, which is not enough where the placebo is seen.
        ("standard-prompt", 6, 5, True),
    ],
)
def test_more_cases_settle_nothing_where_more_than_the_excess_is_open(
    new_audit: type[Audit], name: str, subject: int, control: int, placebo: bool
) -> None:
    def result(subject: int, control: int) -> EvaluationResult:
        audit = _audit(new_audit, but=name).hits(name, subject, 24, control)
        if placebo:
            audit.held_against_itself("fish")
        return _result(audit.verdict(), name)

    for found, settles in ((result(subject, control), False), (result(2, 0), True)):
        assert found.outcome == Outcome.OUTCOME_INCONCLUSIVE
        assert bool(found.further_cases) == ("further cases" in found.reason) == settles


def test_no_uninformative_evaluation_that_is_loud_allows_removed() -> None:
    outcomes = dict.fromkeys((*SILENT, COMPLETION), Outcome.OUTCOME_DOES_NOT_RECOVER)
    outcomes["noise-based"] = Outcome.OUTCOME_UNINFORMATIVE

    def conclusion(*loud: str) -> str:
        decided = decide(
            incomplete=False,
            outcomes=outcomes,
            plain=["standard-prompt"],
            required=REQUIRED,
            knowledge=Knowledge.KNOWLEDGE_DESTROYED,
            loud=loud,
        )
        return Conclusion.Name(decided)

    assert conclusion() == conclusion("another") == "CONCLUSION_REMOVED"
    assert conclusion("noise-based") == "CONCLUSION_INCONCLUSIVE"


def _lack(observations: Iterable[Observation]) -> None:
    for observation in observations:
        del observation.judgements[:]
        observation.status, observation.reason = SampleStatus.SAMPLE_STATUS_NOT_APPLICABLE, "there is no name in it"


def test_what_is_not_applicable_is_no_evidence_and_is_missing_where_it_is_required(new_audit: type[Audit]) -> None:
    audit = _audit(new_audit).hits(COMPLETION, 0, 24)
    _lack(one for one in audit.observations if one.evaluation == "textual-inversion")
    # As if the battery lacked it.
    assert audit.verdict().incomplete_waived
    audit.allow_incomplete = False
    verdict = audit.verdict()
    result = _result(verdict, "textual-inversion")
    assert result.outcome == Outcome.OUTCOME_NOT_APPLICABLE
    assert result.reason == "is not applicable: there is no name in it"
    assert (result.not_applicable_cases, result.subject.cases, result.subject.excluded) == (24, 0, 24)
    assert not result.HasField("excess")
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE
    assert list(verdict.missing) == ["textual-inversion"]
    assert "textual-inversion is not applicable: there is no name in it." in list(verdict.evidence)
    # It takes no part in Holm's adjustment, in the count of tests or in what is said of the controls.
    audit.observations = [one for one in audit.observations if one.evaluation != "textual-inversion"]
    audit.battery.remove("textual-inversion")
    without = audit.verdict()
    assert verdict.power == without.power
    assert verdict.control_statement == without.control_statement
    assert [one.excess for one in verdict.evaluations if one.name != "textual-inversion"] == [
        one.excess for one in without.evaluations
    ]


def test_some_cases_that_lack_something_are_left_out_and_counted(new_audit: type[Audit]) -> None:
    audit = _audit(new_audit).hits(COMPLETION, 0, 24)
    _lack(one for one in audit.observations if one.evaluation == "textual-inversion" and one.case_index < 4)
    verdict = audit.verdict()
    result = _result(verdict, "textual-inversion")
    assert result.outcome != Outcome.OUTCOME_NOT_APPLICABLE
    assert (result.not_applicable_cases, result.not_applicable_because) == (4, "there is no name in it")
    assert (result.subject.cases, result.subject.excluded, result.subject.unscored) == (20, 4, 0)
    assert "4 to which it does not apply: there is no name in it" in result.reason
    assert "own rule" not in result.reason


def test_the_share_of_doubtful_cases_is_of_those_that_the_subject_has(new_audit: type[Audit]) -> None:
    """12 of 24 cases lack a name; the placebo has its own prompts in all of them. 2 unscored of 12 are too many."""
    audit = new_audit()
    missed: list[bool | None] = [False] * 24
    missed[22:] = [None, None]
    audit.hits("standard-prompt", 0, 24).evaluation("textual-inversion", missed, [True] * 24, [False] * 24)
    audit.held_against_itself("nothing").allow_incomplete = False
    _lack(
        one
        for one in audit.observations
        if one.case_index < 12 and one.evaluation == "textual-inversion" and one.role != CONTROL
    )
    verdict = audit.verdict()
    assert "too much is unscored in textual-inversion" in verdict.statement
