"""The comparability digest: equal if and only if everything but the subject is."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compared_by_hand import Audit, compared
from unerase.v1.audits_pb2 import JudgeRecord, ReportContent
from unerase.v1.models_pb2 import Guard
from unerase.v1.types_pb2 import PromptKind, PromptPack
from unerase_backend.comparison import comparability_digest
from unerase_backend.comparison.basis import basis_of, differing

Change = Callable[[Audit], object]


def _described(audit: Audit, **fields: object) -> None:
    changed = type(audit.descriptions[0])()
    changed.CopyFrom(audit.descriptions[0])
    for name, value in fields.items():
        setattr(changed, name, value)
    audit.descriptions = [changed, *audit.descriptions[1:]]


def _without_control(audit: Audit) -> None:
    audit.observations = [one for one in audit.observations if one.role != 3]


def _pack(*prompts: str, source: str = "a.yaml") -> PromptPack:
    return PromptPack(kinds=[PromptKind(name="synonym", prompts=prompts)], source={"name": source})


# By the part of the basis that each changes.
DECISIVE: dict[str, list[Change]] = {
    "concept": [
        lambda audit: audit.concept.names.append("sandglass"),
        lambda audit: audit.concept.labels[0].labels.append("clock"),
        lambda audit: audit.concept.picture_digests.append("d"),
        lambda audit: audit.spec_fields.update(pack=_pack("a sandglass")),
    ],
    "seed base": [lambda audit: setattr(audit, "seed_base", 12)],
    "battery": [
        lambda audit: audit.requests[0].parameters.update({"draws": 9}),
        lambda audit: _described(audit, source_digest="b2"),
    ],
    "steps": [lambda audit: audit.spec_fields.update(steps=5)],
    "guidance": [lambda audit: audit.spec_fields.update(guidance_scale=4)],
    "schedule": [
        lambda audit: setattr(audit.manifest.models[0].schedule, "timestep_spacing", "trailing"),
        lambda audit: audit.spec_fields.update(own_schedules=True),
    ],
    "reference": [lambda audit: setattr(audit.manifest.models[0], "weights_digest", "d-other")],
    "judge": [
        lambda audit: setattr(audit.manifest.judges[1], "digest", "d-other"),
        lambda audit: setattr(audit.manifest.judges[1], "threshold", 0.6),
    ],
    "second judge": [lambda audit: audit.manifest.judges[2].CopyFrom(JudgeRecord(name="second", digest="d-other"))],
    "selector": [lambda audit: setattr(audit.manifest.judges[0], "digest", "d-other")],
    "decided by": [lambda audit: audit.spec_fields.update(decided_by="DECIDED_BY_JUDGE")],
    "controls": [_without_control],
    "numerics profile": [lambda audit: setattr(audit.manifest, "numerics_profile", "bfloat16 cuda")],
}

NEUTRAL: dict[str, Change] = {
    "another subject": lambda audit: setattr(audit, "digest", "d-new"),
    "its name": lambda audit: setattr(audit, "subject", "t"),
    "its answers": lambda audit: [one.judgements[1].CopyFrom(one.judgements[0]) for one in audit.observations],
    "tolerances": lambda audit: audit.spec_fields.update(tolerances={"excess": 0.3}),
    "versions": lambda audit: audit.manifest.versions.update({"torch": "2.14"}),
    "hardware": lambda audit: audit.manifest.hardware.update({"cpu": "another"}),
    "the provider of a judge": lambda audit: setattr(audit.manifest.judges[0], "provider", "unerase 9"),
    "the concept's default control": lambda audit: setattr(audit.concept, "control", "x"),
    "blurring": lambda audit: setattr(audit.concept, "sensitive", True),
    "a default written out": lambda audit: audit.requests[1].parameters.update({"draws": 4}),
    "the title of an evaluation": lambda audit: _described(audit, title="Another"),
    "the reference's guards": lambda audit: (
        setattr(audit.manifest.models[0], "weights_digest", "d-reference"),
        setattr(audit.manifest.models[0], "digest", "d-guarded"),
        audit.manifest.models[0].guards.append(Guard(kind="safety-checker")),
    ),
}


def audit_with(*changes: Change) -> ReportContent:
    audit = Audit(cases=3).hits("standard-prompt", 1).hits("noise-based", 2)
    for change in changes:
        change(audit)
    return audit.recorded().content


@pytest.mark.parametrize(
    ("part", "change"), [(part, change) for part, changes in DECISIVE.items() for change in changes]
)
def test_every_part_changes_the_digest(part: str, change: Change) -> None:
    before, after = audit_with(), audit_with(change)
    assert comparability_digest(before) != comparability_digest(after)
    assert differing(basis_of(before), basis_of(after)) == [part]


@pytest.mark.parametrize("name", NEUTRAL)
def test_nothing_else_does(name: str) -> None:
    before, after = audit_with(), audit_with(NEUTRAL[name])
    assert before != after
    assert comparability_digest(before) == comparability_digest(after)


def test_other_cases_change_the_digest() -> None:
    before, after = (
        Audit(cases=cases).evaluation("standard-prompt", [True] * 3).recorded().content for cases in (3, 4)
    )
    assert differing(basis_of(before), basis_of(after)) == ["cases"]


_EACH = [(part, index) for part, changes in DECISIVE.items() for index in range(len(changes))]
_SOME = st.sets(st.sampled_from(_EACH), max_size=4)


@given(_SOME, _SOME, st.sets(st.sampled_from(sorted(NEUTRAL)), max_size=3))
@settings(deadline=None, max_examples=60)
def test_equal_if_and_only_if_all_parts_are(
    first: set[tuple[str, int]], second: set[tuple[str, int]], neutral: set[str]
) -> None:
    one = audit_with(*(DECISIVE[part][index] for part, index in sorted(first)))
    other = audit_with(
        *(NEUTRAL[name] for name in sorted(neutral)), *(DECISIVE[part][index] for part, index in sorted(second))
    )
    same = comparability_digest(one) == comparability_digest(other)
    assert same == (not differing(basis_of(one), basis_of(other)))
    # A schedule of its own hides what the reference's is, so that two sets can mean the same.
    if ("schedule", 1) not in first | second:
        assert same == (first == second)


def test_the_report_has_it() -> None:
    recorded = Audit().hits("standard-prompt", 3).recorded()
    assert recorded.content.comparability_digest == comparability_digest(recorded.content)
    assert len(recorded.content.comparability_digest) == 64


def test_equal_digests_leave_nothing_incomparable_and_no_numerics_noted() -> None:
    first = Audit().hits("standard-prompt", 3).hits("diffusion-completion", 5)
    second = Audit(digest="d-new").hits("standard-prompt", 9).hits("diffusion-completion", 1)
    second.manifest.versions["torch"] = "2.14"
    comparison = compared(first, second)
    assert comparison.alike
    assert not comparison.incomparable
    assert not any(one.incomparable for one in comparison.evaluations)
    assert [each.what for each in comparison.noted] == ["version of torch"]


def test_a_file_of_a_prompt_pack_may_have_another_name() -> None:
    one, other = (
        audit_with(lambda audit, name=name: audit.spec_fields.update(pack=_pack("a", source=name))) for name in "ab"
    )
    assert comparability_digest(one) == comparability_digest(other)
