"""Two audits: what prevents a comparison, both accesses of guarded subjects, and what is said."""

import pytest

from support.compared_by_hand import WITHHELD, Audit, compared, only, what
from unerase.v1.audits_pb2 import JudgeRecord
from unerase.v1.comparisons_pb2 import Change
from unerase.v1.types_pb2 import EvaluationRequest, ModelAccess, NotApplicable
from unerase.v1.verdicts_pb2 import Conclusion, Outcome
from unerase_backend.comparison import compare_audits
from unerase_backend.comparison.evaluations import access_shared

WORSE, BETTER, SAME, UNSETTLED = (
    Change.CHANGE_WORSE,
    Change.CHANGE_BETTER,
    Change.CHANGE_SAME,
    Change.CHANGE_UNSETTLED,
)
UNGUARDED, DEPLOYED, OPEN_WEIGHTS, BOTH = (
    ModelAccess.MODEL_ACCESS_UNSPECIFIED,
    ModelAccess.MODEL_ACCESS_DEPLOYED,
    ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS,
    ModelAccess.MODEL_ACCESS_BOTH,
)


def other_judge(audit: Audit) -> None:
    audit.manifest.judges[1].CopyFrom(JudgeRecord(name="judge", digest="d-other", threshold=0.5))


def other_threshold(audit: Audit) -> None:
    audit.manifest.judges[1].threshold = 0.6


def other_schedule(audit: Audit) -> None:
    audit.manifest.models[0].schedule.timestep_spacing = "trailing"


PREVENTING = {
    "cases": lambda audit: setattr(audit, "cases", 23),
    "seed base": lambda audit: setattr(audit, "seed_base", 12),
    "concept": lambda audit: audit.concept.names.append("sandglass"),
    "steps": lambda audit: audit.spec_fields.update(steps=5),
    "guidance": lambda audit: audit.spec_fields.update(guidance_scale=4),
    "judge": other_judge,
    "decided by": lambda audit: audit.spec_fields.update(decided_by="DECIDED_BY_JUDGE"),
    "schedule": other_schedule,
}


@pytest.mark.parametrize("part", PREVENTING)
def test_what_prevents_a_comparison_is_named(part: str) -> None:
    first, second = Audit().hits("standard-prompt", 3), Audit().hits("standard-prompt", 3)
    PREVENTING[part](second)
    comparison = compared(first, second)
    assert what(comparison.incomparable) == [part]
    assert not comparison.evaluations
    assert comparison.change == Change.CHANGE_UNSPECIFIED
    assert comparison.statement == f"The audits cannot be compared: they differ in {part}."
    assert not comparison.alike
    (difference_,) = comparison.incomparable
    assert difference_.first != difference_.second


def test_another_threshold_is_another_judge() -> None:
    second = Audit().hits("standard-prompt", 3)
    other_threshold(second)
    assert what(compared(Audit().hits("standard-prompt", 3), second).incomparable) == ["judge"]


def test_a_renamed_judge_is_the_same_judge() -> None:
    second = Audit().hits("standard-prompt", 3)
    second.manifest.judges[2].name = "renamed"
    second.spec_fields["second_judge"] = "renamed"
    assert compared(Audit().hits("standard-prompt", 3), second).alike


def test_numerics_and_versions_are_noted() -> None:
    second = Audit().hits("standard-prompt", 3)
    second.manifest.numerics_profile = "bfloat16 cuda"
    second.manifest.versions["torch"] = "2.14"
    comparison = compared(Audit().hits("standard-prompt", 3), second)
    assert what(comparison.noted) == ["numerics profile", "version of torch"]
    assert (comparison.noted[1].first, comparison.noted[1].second) == ("2.13", "2.14")
    assert only(comparison).change == SAME
    assert not comparison.alike


def test_other_parameters_prevent_that_evaluation_alone() -> None:
    first = Audit().hits("standard-prompt", 3).hits("noise-based", 3)
    second = Audit().hits("standard-prompt", 3).hits("noise-based", 3, parameters={"draws": 24})
    plain_, noise = compared(first, second).evaluations
    assert plain_.change == SAME
    assert what(noise.incomparable) == ["parameter draws"]
    assert (noise.incomparable[0].first, noise.incomparable[0].second) == ("4.0", "24.0")
    assert (noise.cases, noise.p, noise.change) == (0, 1.0, Change.CHANGE_UNSPECIFIED)
    # A default that is written out is the same parameter.
    written = Audit().hits("standard-prompt", 3).hits("noise-based", 3, parameters={"draws": 4})
    assert not any(one.incomparable for one in compared(first, written).evaluations)


def test_beside_another_reference_only_the_plain_prompt_is_compared() -> None:
    def audit() -> Audit:
        return Audit().hits("standard-prompt", 3).hits("diffusion-completion", 3).likelihood([0.5], [0.1])

    second = audit()
    second.manifest.models[0].digest = "d-other"
    comparison = compared(audit(), second)
    plain_, injecting = comparison.evaluations
    assert plain_.change == SAME
    assert what(injecting.incomparable) == ["reference"]
    assert not comparison.figures
    assert "reference" in what(comparison.noted)


def test_arms_that_only_one_audit_could_decide_by_prevent_it() -> None:
    """Beside a placebo, which cannot begin from the reference, an arm has no control and does not decide."""
    first = Audit().hits("diffusion-completion", 3).hits("diffusion-completion", 3, arm="prompt@5")
    second = Audit().hits("diffusion-completion", 3).hits("diffusion-completion", 3, arm="prompt@5", control=[])
    assert what(only(compared(first, second)).incomparable) == ["deciding arms"]


def test_evaluations_of_one_audit_alone_are_named() -> None:
    first = Audit().hits("standard-prompt", 3).hits("noise-based", 3)
    second = Audit().hits("standard-prompt", 3).likelihood([0.5], [0.1])
    comparison = compared(first, second)
    assert (list(comparison.only_in_first), list(comparison.only_in_second)) == (["noise-based"], ["likelihood"])


def test_another_kind_of_control_is_noted() -> None:
    first, second = Audit().hits("standard-prompt", 3), Audit().hits("standard-prompt", 3, control=[])
    (noted,) = compared(first, second).noted
    assert (noted.what, noted.first, noted.second) == (
        "control of standard-prompt",
        "CONTROL_KIND_MODEL",
        "CONTROL_KIND_NONE",
    )


def test_an_unchanged_audit_is_said_to_be_so_within_its_bounds() -> None:
    statement = compared(Audit().hits("standard-prompt", 3), Audit(subject="t").hits("standard-prompt", 3)).statement
    assert statement == (
        "t shows hourglass as often as s in the one evaluation that can be compared, to within 0.117 (one-sided 95 %)."
    )


def test_reports_that_do_not_describe_their_evaluations_cannot_be_compared() -> None:
    """Those of earlier versions do not say which arms decide."""
    first, second = (Audit().hits("standard-prompt", 3).recorded() for _ in range(2))
    del first.content.descriptions[:]
    comparison = compare_audits(first, second)
    assert what(comparison.incomparable) == ["recorded descriptions"]
    assert not comparison.evaluations


def test_another_source_of_an_evaluation_is_noted() -> None:
    first, second = Audit().hits("standard-prompt", 3), Audit().hits("standard-prompt", 3)
    changed = type(first.descriptions[0])()
    changed.CopyFrom(first.descriptions[0])
    changed.source_digest = "b2"
    second.descriptions = [changed, *second.descriptions[1:]]
    assert what(compared(first, second).noted) == ["code of standard-prompt"]


def guarded(access: ModelAccess.ValueType, weights: int, deployed: int) -> Audit:
    audit = Audit(access=access)
    if access in (BOTH, OPEN_WEIGHTS):
        audit.hits("standard-prompt", weights, access=OPEN_WEIGHTS)
    if access in (BOTH, DEPLOYED):
        detections = [True] * deployed + [WITHHELD] * (audit.cases - deployed)
        audit.evaluation("standard-prompt", detections, access=DEPLOYED)
    return audit


def test_both_accesses_are_compared_each_with_its_own() -> None:
    comparison = compared(guarded(BOTH, 20, 2), guarded(BOTH, 20, 14))
    weights, deployed = comparison.evaluations
    assert (weights.access, weights.only_second, weights.change) == (OPEN_WEIGHTS, 0, SAME)
    assert (deployed.access, deployed.only_second, deployed.change) == (DEPLOYED, 12, WORSE)
    assert deployed.second_outcome == Outcome.OUTCOME_RECOVERS
    assert deployed.p_holm == deployed.p
    assert "as deployed, with its guards" in comparison.statement


def test_a_subject_without_guards_is_the_same_model_either_way() -> None:
    """What a new safety checker did, for users and for whoever holds the weights."""
    comparison = compared(Audit().hits("standard-prompt", 20), guarded(BOTH, 20, 2))
    weights, deployed = comparison.evaluations
    assert (weights.change, deployed.change) == (SAME, BETTER)
    assert what(comparison.noted) == ["access"]
    assert not comparison.incomparable


def test_the_conclusions_are_those_on_the_shared_access() -> None:
    """The weights show the concept in every case, and the first audit's filter lets no picture through."""
    comparison = compared(guarded(BOTH, 24, 0), guarded(DEPLOYED, 24, 24))
    recorded = guarded(BOTH, 24, 0).recorded().content.verdict
    assert recorded.conclusion == Conclusion.CONCLUSION_NOT_ERASED
    assert comparison.first_conclusion == recorded.deployed.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    assert comparison.second_conclusion == Conclusion.CONCLUSION_NOT_ERASED
    assert only(comparison).change == WORSE


def test_other_accesses_cannot_be_compared() -> None:
    comparison = compared(guarded(DEPLOYED, 20, 2), guarded(OPEN_WEIGHTS, 20, 2))
    assert what(comparison.incomparable) == ["access"]
    assert not comparison.evaluations


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (UNGUARDED, UNGUARDED, [UNGUARDED]),
        (UNGUARDED, DEPLOYED, [DEPLOYED]),
        (BOTH, UNGUARDED, [OPEN_WEIGHTS, DEPLOYED]),
        (BOTH, DEPLOYED, [DEPLOYED]),
        (DEPLOYED, OPEN_WEIGHTS, []),
        (BOTH, BOTH, [OPEN_WEIGHTS, DEPLOYED]),
    ],
)
def test_shared_accesses(first: int, second: int, shared: list[int]) -> None:
    assert access_shared(first, second) == shared  # type: ignore[arg-type]


def test_the_statement_names_what_changed() -> None:
    first = Audit(subject="new").hits("standard-prompt", 0).hits("noise-based", 0).likelihood([1.0] * 9, [0.0] * 9)
    second = Audit(subject="new", digest="d-2").hits("standard-prompt", 0).hits("noise-based", 12)
    second.likelihood([0.25] * 9, [0.0] * 9)
    statement = compared(first, second).statement
    assert statement.startswith(
        "new as it is now shows hourglass more often than new as it was in Noise-based "
        "(of 24 cases 12 only now and 0 only before, p "
    )
    assert "; of the other evaluations 1 did not change by the tolerance or more." in statement
    assert "Destruction is 0.750 lower (-0.750 to -0.750)" in statement


def test_the_statement_names_another_conclusion() -> None:
    first, second = Audit().hits("standard-prompt", 0), Audit(subject="t").hits("standard-prompt", 24)
    comparison = compared(first, second)
    assert comparison.second_conclusion == Conclusion.CONCLUSION_NOT_ERASED
    assert "The conclusion was inconclusive, and is now not erased." in comparison.statement
    assert comparison.statement.startswith("t shows hourglass more often than s in Standard-prompt")


def test_the_same_audits_give_the_same_bytes() -> None:
    def audit() -> Audit:
        return Audit().hits("noise-based", 4).hits("standard-prompt", 9).likelihood([0.5, 0.7, 0.2], [0.1, 0.2])

    def shuffled() -> Audit:
        made = audit()
        made.observations.reverse()
        return made

    one, other = (compared(audit(), each()).SerializeToString(deterministic=True) for each in (audit, shuffled))
    assert one == other


def lacking(*names: str, reason: str = "it lacks something") -> Audit:
    """An audit of the standard prompt; the named evaluations do not apply to its models."""
    audit = Audit().hits("standard-prompt", 3)
    audit.requests += [EvaluationRequest(name=name, not_applicable=NotApplicable(reason=reason)) for name in names]
    return audit


def test_what_does_not_apply_in_either_audit_is_not_compared_and_says_why() -> None:
    for first, second in (
        (lacking("noise-based"), lacking("noise-based")),
        (Audit().hits("standard-prompt", 3).hits("noise-based", 3), lacking("noise-based")),
        (lacking("noise-based"), Audit().hits("standard-prompt", 3).hits("noise-based", 3)),
    ):
        comparison = compared(first, second)
        plain_, noise = comparison.evaluations
        assert plain_.change == SAME
        assert noise.not_applicable == "it lacks something"
        assert (noise.cases, noise.p, noise.change) == (0, 1.0, Change.CHANGE_UNSPECIFIED)
        assert not noise.incomparable
        assert not comparison.only_in_first
        assert not comparison.only_in_second
        assert "Not applicable: noise-based, since it lacks something." in comparison.statement
        assert "Not compared" not in comparison.statement


def test_a_measure_that_does_not_apply_has_no_figures_to_compare() -> None:
    measured = Audit().hits("standard-prompt", 3).likelihood([0.5], [0.1])
    assert compared(measured, measured).figures
    assert not compared(measured, lacking("likelihood")).figures
    assert not compared(lacking("likelihood"), lacking("likelihood")).figures


def test_audits_that_lack_the_same_are_alike_and_others_are_not() -> None:
    assert compared(lacking("noise-based"), lacking("noise-based")).alike
    assert not compared(lacking("noise-based"), lacking("noise-based", reason="another")).alike
