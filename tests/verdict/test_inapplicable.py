"""Evaluations that do not apply to the models' family: no evidence, and nothing is called removed without them."""

from typing import Any

import pytest

from unerase.v1.types_pb2 import EVALUATION_CLASS_INJECTING, EVALUATION_CLASS_MEASURE, EvaluationRequest, NotApplicable
from unerase.v1.verdicts_pb2 import Conclusion, Outcome, Verdict
from unerase_backend.verdict.inapplicable import applying, listed
from unerase_backend.verdict.summary import OPEN, grounds

from .conftest import SUBJECT

Audit = Any
COMPLETION, REASON = "diffusion-completion", "predictions without guidance are needed"
TRIED = ("standard-prompt", "noise-based", COMPLETION, "textual-inversion", "unlearn-diff-atk")


@pytest.fixture
def lost(audit: Audit) -> Audit:
    """A complete audit of a model that shows nothing and has lost the knowledge; nothing is waived."""
    audit.allow_incomplete = False
    for name in TRIED:
        audit.hits(name, 0, 24)
    return audit.likelihood(destruction=1.0)


def result(verdict: Verdict, name: str) -> Any:
    return next(one for one in verdict.evaluations if one.name == name)


def test_it_has_a_result_without_figures_and_stands_in_the_list(lost: Audit) -> None:
    verdict = lost.without(COMPLETION, REASON).verdict()
    shown = result(verdict, COMPLETION)
    assert shown.outcome == Outcome.OUTCOME_NOT_APPLICABLE
    assert shown.reason == f"is not applicable: {REASON}"
    assert (shown.not_applicable_because, shown.not_applicable_cases) == (REASON, 0)
    assert not any(shown.HasField(field) for field in ("subject", "reference", "control", "excess"))
    (one,) = verdict.not_applicable
    assert (one.name, one.title, one.required) == (COMPLETION, COMPLETION, True)
    assert one.evaluation_class == EVALUATION_CLASS_INJECTING
    assert one.why == NotApplicable(reason=REASON, family="a-family")
    assert f"{COMPLETION} is not applicable: {REASON}." in list(verdict.evidence)


def test_a_measure_has_no_result_but_stands_in_the_list_and_the_evidence(lost: Audit) -> None:
    verdict = lost.without("interference", REASON).verdict()
    assert "interference" not in {one.name for one in verdict.evaluations}
    (one,) = verdict.not_applicable
    assert (one.evaluation_class, one.required) == (EVALUATION_CLASS_MEASURE, False)
    assert f"interference is not applicable: {REASON}." in list(verdict.evidence)
    assert not verdict.HasField("interference")


def test_without_one_that_removed_needs_nothing_is_removed(lost: Audit) -> None:
    assert lost.verdict().conclusion == Conclusion.CONCLUSION_REMOVED
    verdict = lost.without(COMPLETION, REASON).verdict()
    assert verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    assert list(verdict.missing) == [COMPLETION]
    assert not verdict.incomplete_waived
    assert f"{COMPLETION} is not applicable, and nothing is called removed without it: {REASON}." in verdict.statement
    assert "1 required test does not apply to models of this kind" in verdict.summary


def test_without_the_likelihood_nothing_is_removed_either(lost: Audit) -> None:
    verdict = lost.without("likelihood", REASON).without(COMPLETION, REASON).verdict()
    assert verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    assert not verdict.HasField("likelihood")
    names = f"likelihood and {COMPLETION}"
    assert f"{names} are not applicable, and nothing is called removed without them: {REASON}" in verdict.statement
    assert "2 required tests do not apply to models of this kind" in verdict.summary


def test_it_does_not_make_an_audit_incomplete_but_what_is_left_out_does(lost: Audit) -> None:
    lost.without(COMPLETION)
    assert lost.verdict().conclusion != Conclusion.CONCLUSION_INCOMPLETE
    lost.battery.remove("noise-based")
    verdict = lost.verdict()
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE
    assert "the battery lacks noise-based;" in verdict.statement
    assert set(verdict.missing) == {"noise-based", COMPLETION}


@pytest.mark.parametrize(
    ("recovers", "conclusion"),
    [
        ("standard-prompt", Conclusion.CONCLUSION_NOT_ERASED),
        ("textual-inversion", Conclusion.CONCLUSION_AVOIDED),
    ],
)
def test_what_is_found_without_it_stands(audit: Audit, recovers: str, conclusion: int) -> None:
    audit.allow_incomplete = False
    for name in TRIED:
        audit.hits(name, 24 if name == recovers else 0, 24)
    verdict = audit.likelihood(destruction=1.0).without(COMPLETION).verdict()
    assert verdict.conclusion == conclusion


def test_a_waiver_goes_without_it_and_the_verdict_says_so(lost: Audit) -> None:
    lost.allow_incomplete = True
    verdict = lost.without(COMPLETION, REASON).verdict()
    assert verdict.conclusion == Conclusion.CONCLUSION_REMOVED
    assert verdict.incomplete_waived
    assert f"allowed to be incomplete: {COMPLETION} does not apply to these models." in verdict.statement
    assert "1 required test left out or not usable" in verdict.summary
    lost.battery.remove("noise-based")
    both = lost.verdict().statement
    assert f"incomplete: it lacks noise-based, and {COMPLETION} does not apply to these models." in both


def test_a_waiver_does_not_make_up_for_the_likelihood(lost: Audit) -> None:
    lost.allow_incomplete = True
    assert lost.without("likelihood").verdict().conclusion == Conclusion.CONCLUSION_INCONCLUSIVE


def test_one_that_removed_does_not_need_holds_nothing_back(lost: Audit) -> None:
    assert lost.without("interference").verdict().conclusion == Conclusion.CONCLUSION_REMOVED


def test_the_others_are_judged_as_if_it_were_not_in_the_battery(lost: Audit) -> None:
    verdict = lost.without(COMPLETION).verdict()
    lost.battery.remove(COMPLETION)
    without = lost.verdict()
    assert verdict.power == without.power
    assert verdict.control_statement == without.control_statement
    assert [one for one in verdict.evaluations if one.name != COMPLETION] == list(without.evaluations)


def test_stray_observations_of_it_say_nothing(lost: Audit, observe: Any) -> None:
    verdict = lost.without(COMPLETION).verdict()
    lost.observations += [observe(COMPLETION, SUBJECT, case, True, arm="prompt@0.1") for case in range(24)]
    assert lost.verdict() == verdict


def test_the_grounds_say_it_and_do_not_call_it_left_out(lost: Audit) -> None:
    verdict = lost.without(COMPLETION, REASON).without("likelihood", REASON).verdict()
    found = grounds(verdict, destruction=0.1, general_damage=0.25, interference=0.15)
    said = {ground.text: ground.says for ground in found}
    for name in (COMPLETION, "likelihood"):
        assert said[f"{name} does not apply: {REASON}."] == OPEN
    assert not any(text.startswith("Left out") for text in said)


def test_names_are_listed_in_words() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_what_applies_is_what_has_no_reason_against_it() -> None:
    battery = [EvaluationRequest(name="a"), EvaluationRequest(name="b", not_applicable=NotApplicable())]
    assert applying(battery) == ["a"]
