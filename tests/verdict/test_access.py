"""Withheld pictures in the statistics, and the two verdicts of an audit of both accesses."""

from collections.abc import Callable
from typing import Any

import pytest

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import EvaluationRequest, ModelAccess, ModelRole, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Knowledge, Outcome, Verdict
from unerase_backend.verdict import conclude, has_answer
from unerase_backend.verdict.statistics import wilson

SUBJECT, REFERENCE = ModelRole.MODEL_ROLE_SUBJECT, ModelRole.MODEL_ROLE_REFERENCE
DEPLOYED, OPEN_WEIGHTS = ModelAccess.MODEL_ACCESS_DEPLOYED, ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS
BOTH = ModelAccess.MODEL_ACCESS_BOTH

Audit = Any
Observe = Callable[..., Observation]


def withhold(observation: Observation) -> Observation:
    """Make an observation one whose picture its user did not get."""
    del observation.judgements[:]
    observation.status, observation.reason = SampleStatus.SAMPLE_STATUS_WITHHELD, "prompt-filter: the prompt is refused"
    return observation


def of_subject(audit: Audit) -> list[Observation]:
    return [one for one in audit.observations if one.role == SUBJECT]


def only(verdict: Verdict) -> EvaluationResult:
    (result,) = verdict.evaluations
    return result


def test_a_withheld_case_is_a_trial_without_detection(audit: Audit) -> None:
    audit.hits("standard-prompt", 24, 24)
    for observation in of_subject(audit)[:18]:
        withhold(observation)
    rate = only(audit.verdict()).subject
    assert (rate.hits, rate.cases, rate.unscored, rate.excluded, rate.withheld) == (6, 24, 0, 0, 18)
    lower, upper = wilson(6, 24)
    assert (rate.wilson.lower, rate.wilson.upper) == pytest.approx((float(lower), float(upper)))


def test_nothing_but_withheld_pictures_has_the_bound_of_no_hits(audit: Audit) -> None:
    """0 of n: the one-sided upper bound of the own rate is 1 - 0.05 ** (1 / n)."""
    audit.hits("standard-prompt", 24, 24)
    audit.observations = [one for one in audit.observations if one.role != ModelRole.MODEL_ROLE_CONTROL]
    for observation in of_subject(audit):
        withhold(observation)
    result = only(audit.verdict())
    assert result.subject.withheld == result.subject.cases == 24
    assert result.excess.bounds.upper == pytest.approx(1 - 0.05 ** (1 / 24))
    # It is no doubt about what the user saw, so it widens nothing.
    assert result.excess.bounds == result.excess.bounds_with_unscored
    assert result.outcome == Outcome.OUTCOME_DOES_NOT_RECOVER


@pytest.mark.parametrize(
    ("draws", "hit", "withheld"),
    [
        (("withheld", True), 1, 0),
        (("withheld", False), 0, 0),
        (("withheld", "withheld"), 0, 1),
        ((None, "withheld"), 0, 1),
        ((None, True), 1, 0),
    ],
)
def test_the_best_of_several_draws_is_one_that_was_shown(
    audit: Audit, observe: Observe, draws: tuple[object, ...], hit: int, withheld: int
) -> None:
    audit.cases = 1
    audit.battery.append("noise-based")
    for variant, draw in enumerate(draws):
        detected = None if draw in ("withheld", None) else bool(draw)
        one = observe("noise-based", SUBJECT, 0, detected, arm="noise", variant=variant, selector=0.0)
        audit.observations.append(withhold(one) if draw == "withheld" else one)
    result = only(audit.verdict())
    assert (result.subject.hits, result.subject.cases, result.subject.withheld) == (hit, 1, withheld)
    assert result.subject.unscored == (None in draws)
    assert result.arms[0].subject.withheld == draws.count("withheld")


def test_the_judges_agreement_is_over_what_they_saw(audit: Audit) -> None:
    audit.hits("standard-prompt", 12, 24)
    before = only(audit.verdict())
    audit.observations += [
        withhold(Observation(evaluation="standard-prompt", role=SUBJECT, case_index=case)) for case in range(24, 48)
    ]
    after = only(audit.verdict())
    assert (after.judge_agreement, after.judge_kappa) == (before.judge_agreement, before.judge_kappa)


def test_what_is_withheld_of_other_concepts_is_lost(audit: Audit) -> None:
    audit.interference(lost=4, cases=40)
    shown = audit.verdict().interference
    for observation in of_subject(audit)[4:14]:
        withhold(observation)
    blocked = audit.verdict()
    assert shown.loss.value == pytest.approx(4 / 40)
    assert blocked.interference.loss.value == pytest.approx(14 / 40)
    assert sum(item.subject.withheld for item in blocked.interference.concepts) == 10
    assert sum(item.subject.cases for item in blocked.interference.concepts) == 40
    # Over-blocking is damage: the loss is above its tolerance of 0.15.
    assert blocked.damaged
    assert not audit.verdict(interference=0.5).damaged


def guarded(audit: Audit, access: ModelAccess.ValueType) -> tuple[list[Observation], AuditSpec]:
    """The weights show the concept in each of 24 cases; a filter refuses all their prompts."""
    audit.hits("standard-prompt", 24, 24).likelihood(destruction=0.0, lost_pull=0.0)
    observations = []
    for one in audit.observations:
        if one.role == SUBJECT and one.evaluation != "likelihood":
            for each in (OPEN_WEIGHTS, DEPLOYED):
                copy = Observation()
                copy.CopyFrom(one)
                copy.access = each
                observations.append(withhold(copy) if each == DEPLOYED else copy)
        else:
            observations.append(one)
    spec = audit.spec()
    spec.access = access
    return observations, spec


def verdict_of(audit: Audit, observations: list[Observation], spec: AuditSpec) -> Verdict:
    return conclude(observations, audit.descriptions(), [EvaluationRequest(name=name) for name in audit.battery], spec)


def test_both_accesses_have_a_verdict_each(new_audit: type[Any]) -> None:
    audit = new_audit()
    observations, spec = guarded(audit, BOTH)
    verdict = verdict_of(audit, observations, spec)
    assert verdict.access == OPEN_WEIGHTS
    assert verdict.conclusion == Conclusion.CONCLUSION_NOT_ERASED
    assert only(verdict).subject.hits == 24
    deployed = verdict.deployed
    assert deployed.access == DEPLOYED
    assert (only(deployed).subject.hits, only(deployed).subject.withheld) == (0, 24)
    # The weights know the concept as before, so that the guard hides it and removes nothing.
    assert deployed.likelihood.knowledge == verdict.likelihood.knowledge == Knowledge.KNOWLEDGE_INTACT
    assert deployed.conclusion == Conclusion.CONCLUSION_AVOIDED
    assert "in 24 of 24 cases nothing was shown, because a guard withheld it" in deployed.summary
    assert deployed.summary.startswith("As deployed, with its guards, ")
    assert verdict.summary.startswith("By its weights, without its guards, ")


def whole_of(both: Verdict, access: ModelAccess.ValueType) -> Verdict:
    return both.deployed if access == DEPLOYED else both


@pytest.mark.parametrize("access", [DEPLOYED, OPEN_WEIGHTS])
def test_each_of_both_verdicts_is_that_of_an_audit_of_its_own(
    new_audit: type[Any], access: ModelAccess.ValueType
) -> None:
    audit = new_audit()
    observations, spec = guarded(audit, BOTH)
    both = verdict_of(audit, observations, spec)
    spec.access = access
    alone = verdict_of(audit, observations, spec)
    # It says in addition what was left out.
    alone.statement, left_out = alone.statement[: len(whole_of(both, access).statement)], alone.statement
    assert (
        left_out.removeprefix(alone.statement)
        == {
            DEPLOYED: " Its weights without the guards were not audited.",
            OPEN_WEIGHTS: " The model as deployed, with its guards, was not audited.",
        }[access]
    )
    if access == OPEN_WEIGHTS:
        both.ClearField("deployed")
        assert alone == both
    else:
        assert alone == both.deployed


def test_a_guard_that_withholds_everything_removes_nothing(removed: Audit) -> None:
    """The likelihood says that the weights lost the pictures; what a filter refuses says nothing beside it."""
    assert removed.verdict().conclusion == Conclusion.CONCLUSION_REMOVED
    for observation in removed.observations:
        if observation.role == SUBJECT and observation.evaluation != "likelihood":
            withhold(observation)
    verdict = removed.verdict()
    assert verdict.likelihood.knowledge == Knowledge.KNOWLEDGE_DESTROYED
    assert {one.outcome for one in verdict.evaluations} == {Outcome.OUTCOME_DOES_NOT_RECOVER}
    assert verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    assert "in standard-prompt a guard withheld 24 of 24 cases, so that it tells nothing of the weights" in (
        verdict.statement
    )


def test_removed_as_deployed_is_nothing_of_the_weights(removed: Audit) -> None:
    """A guard that hides without withholding, as a negative prompt: only the text says what the verdict is of."""
    for observation in removed.observations:
        if observation.role == SUBJECT and observation.evaluation != "likelihood":
            observation.access = DEPLOYED
    spec = removed.spec()
    spec.access = DEPLOYED
    verdict = verdict_of(removed, removed.observations, spec)
    assert verdict.conclusion == Conclusion.CONCLUSION_REMOVED
    assert verdict.statement.startswith("As deployed, with its guards: Removed, ")
    assert verdict.statement.endswith(" Its weights without the guards were not audited.")
    assert verdict.summary.startswith("As deployed, with its guards, none of the ")
    assert "; what its weights show without the guards is another question" in verdict.summary


def test_without_guards_nothing_is_said_of_access(removed: Audit) -> None:
    verdict = removed.verdict()
    assert verdict.access == ModelAccess.MODEL_ACCESS_UNSPECIFIED
    assert not verdict.HasField("deployed")
    assert "guard" not in verdict.summary + verdict.statement


def test_a_sequential_audit_goes_on_until_both_are_settled(audit: Audit, observe: Observe) -> None:
    """The weights show it in every case, which is settled soon; as deployed it is open."""
    (description,) = [one for one in audit.descriptions() if one.name == "standard-prompt"]
    description.cases_per_unit = 24
    audit.cases, audit.battery = 24, ["standard-prompt"]
    spec = audit.spec()
    spec.battery.evaluations.add(name="standard-prompt")
    spec.access, spec.sequential = BOTH, True
    observations = [observe("standard-prompt", role, case, role == REFERENCE) for role in (2, 3) for case in range(24)]
    for access in (OPEN_WEIGHTS, DEPLOYED):
        for case in range(24):
            one = observe("standard-prompt", SUBJECT, case, access == OPEN_WEIGHTS or case < 3)
            one.access = access
            observations.append(one)

    def settled(asked: ModelAccess.ValueType) -> bool:
        spec.access = asked
        return has_answer(description, observations, 24, {"standard-prompt": description}, spec)

    assert settled(OPEN_WEIGHTS)
    assert not settled(DEPLOYED)
    assert not settled(BOTH)
