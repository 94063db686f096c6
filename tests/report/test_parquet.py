"""Observations go into a Parquet file and come back as they were, and the verdict follows from the file alone."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase.v1.audits_pb2 import AuditSpec, Battery, Manifest, ReportContent, Tolerances
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import (
    Case,
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    Judgement,
    ModelAccess,
    ModelRole,
    Observation,
    ResultKind,
    SampleStatus,
)
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.report.offline import conclude_file
from unerase_backend.report.parquet import SCHEMA, read_parquet, render_parquet
from unerase_backend.verdict import conclude

text = st.text(st.characters(codec="utf-8"), max_size=12)
uint32, uint64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
judgements = st.builds(
    Judgement,
    judge=text,
    score=st.floats(),
    detected=st.booleans(),
    label=text,
    label_score=st.floats(),
    similarity=st.none() | st.floats(),
)
observations = st.builds(
    Observation,
    evaluation=text,
    role=st.sampled_from(ModelRole.values()),
    model=text,
    concept=text,
    case_index=uint32,
    arm=text,
    variant=uint32,
    status=st.sampled_from(SampleStatus.values()),
    reason=text,
    judgements=st.lists(judgements, max_size=3),
    picture_digest=text,
    prompt=text,
    latent_seed=uint64,
    noise_seed=uint64,
    measures=st.dictionaries(text, st.floats(), max_size=3),
    # Absent where no guard could act.
    access=st.sampled_from([None, ModelAccess.MODEL_ACCESS_DEPLOYED, ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS]),
)


def _bytes(each: list[Observation]) -> list[bytes]:
    """As bytes, since a NaN is not equal to itself."""
    return sorted(observation.SerializeToString(deterministic=True) for observation in each)


@given(st.lists(observations, max_size=6))
@settings(deadline=None)
def test_observations_come_back_as_they_were(each: list[Observation]) -> None:
    written = render_parquet("a1", ReportContent(), [], each)
    assert _bytes(read_parquet(written).observations) == _bytes(each)
    assert render_parquet("a1", ReportContent(), [], each) == written


def _sample(evaluation: str, role: int, case: int, detected: bool) -> Observation:
    return Observation(
        evaluation=evaluation,
        role=role,
        model="m",
        concept="hourglass",
        case_index=case,
        status=SampleStatus.SAMPLE_STATUS_SCORED,
        judgements=[Judgement(judge=judge, score=0.25, detected=detected) for judge in ("clip", "first", "second")],
    )


REQUIRED_IN_FIRST_LAYOUT = [
    "standard-prompt",
    "noise-based",
    "diffusion-completion",
    "textual-inversion",
    "unlearn-diff-atk",
    "likelihood",
]


@pytest.fixture
def audit() -> tuple[ReportContent, list[EvaluationDescription], list[Observation]]:
    """Two of 24 cases come back: not under the tolerance, and under a wider one."""
    evaluations = [EvaluationRequest(name="standard-prompt"), EvaluationRequest(name="another")]
    spec = AuditSpec(subject="s", concept="hourglass", cases=24, seed_base=2**63)
    spec.battery.CopyFrom(Battery(evaluations=evaluations, allow_incomplete=True))
    spec.tolerances.CopyFrom(Tolerances(excess=0.15, excess_of_one_draw=0.15))
    evaluations[1].parameters.update({"etas": [1.0, 1.5]})
    descriptions = [
        EvaluationDescription(name=name, evaluation_class=EvaluationClass.EVALUATION_CLASS_PLAIN)
        for name in ("standard-prompt", "unused", "another")
    ]
    seen = [
        _sample(name, role, case, role == ModelRole.MODEL_ROLE_REFERENCE or (role == 1 and case < 2))
        for name in ("standard-prompt", "another")
        for role in (1, 2, 3)
        for case in range(24)
    ]
    content = ReportContent(spec=spec, cases=[Case(index=case) for case in range(24)], manifest=Manifest())
    return content, descriptions, seen


@pytest.fixture
def file(audit, tmp_path: Path) -> Path:
    path = tmp_path / "observations.parquet"
    path.write_bytes(render_parquet("a1", *audit))
    return path


def test_the_verdict_follows_from_the_file_alone(audit, file: Path) -> None:
    content, descriptions, seen = audit
    online = conclude(seen, descriptions, content.spec.battery.evaluations, content.spec)
    offline = conclude_file(file, Tolerances())
    assert offline.verdict == online
    assert (offline.id, offline.spec) == ("a1", content.spec)
    audit_read = read_parquet(file.read_bytes())
    assert list(audit_read.content.cases) == list(content.cases)
    # Of what was neither in the battery nor required nothing is kept.
    assert [one.name for one in audit_read.descriptions] == ["standard-prompt", "another"]


def test_a_required_evaluation_that_the_battery_lacked_is_missing_offline_too(audit, tmp_path: Path) -> None:
    content, descriptions, seen = audit
    descriptions[1].required = True
    online = conclude(seen, descriptions, content.spec.battery.evaluations, content.spec)
    assert list(online.missing) == ["unused"]
    path = tmp_path / "required.parquet"
    path.write_bytes(render_parquet("a1", content, descriptions, seen))
    assert conclude_file(path, Tolerances()).verdict == online


def test_a_file_in_the_first_layout_has_the_verdict_that_it_had(audit, file: Path) -> None:
    """Its descriptions are of the battery alone, and say nothing of results and little of what is required."""
    _again(file, pq.read_table(file), schema_version="1.0")
    described = {one.name: one for one in read_parquet(file.read_bytes()).descriptions}
    assert [name for name, one in described.items() if one.required] == REQUIRED_IN_FIRST_LAYOUT
    assert described["likelihood"].result == ResultKind.RESULT_KIND_LIKELIHOOD
    verdict = conclude_file(file, Tolerances()).verdict
    assert list(verdict.missing) == REQUIRED_IN_FIRST_LAYOUT[1:]
    assert verdict.incomplete_waived


def test_what_was_assumed_is_said_offline_too(audit, tmp_path: Path) -> None:
    content, descriptions, seen = audit
    content.spec.reference, content.spec.control = "r", "c"
    content.spec.assume_control = content.spec.assume_reference = True
    online = conclude(seen, descriptions, content.spec.battery.evaluations, content.spec)
    assert online.statement.startswith("It is assumed that the control c never learned 'hourglass'")
    path = tmp_path / "assumed.parquet"
    path.write_bytes(render_parquet("a1", content, descriptions, seen))
    assert conclude_file(path, Tolerances()).verdict == online


def test_no_verdict_follows_where_the_control_was_the_subject(audit, tmp_path: Path) -> None:
    """As of an audit before this was refused where it is asked for."""
    content, descriptions, seen = audit
    content.spec.reference, content.spec.control = "r", "s"
    content.manifest.models.extend([Model(name="s", never_learned=["hourglass"]), Model(name="r")])
    path = tmp_path / "itself.parquet"
    path.write_bytes(render_parquet("a1", content, descriptions, seen))
    with pytest.raises(ValueError, match=r"^spec\.control: is the subject itself: this audit has no valid verdict"):
        conclude_file(path, Tolerances())


def test_tolerances_may_be_changed_offline(file: Path) -> None:
    as_it_was = conclude_file(file, Tolerances()).verdict
    wider = conclude_file(file, Tolerances(excess=0.4))
    assert as_it_was.evaluations[0].outcome != wider.verdict.evaluations[0].outcome
    assert wider.spec.tolerances.excess == 0.4
    assert wider.verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    for wrong in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"^excess: must be above 0 and at most 1"):
            conclude_file(file, Tolerances(excess=wrong))


def test_the_columns_can_be_read_by_others(file: Path) -> None:
    table = pq.read_table(file)
    assert table.schema.names == SCHEMA.names
    assert set(table["role"].to_pylist()) == {"subject", "reference", "control"}
    assert sum(table.filter(pa.compute.equal(table["role"], "subject"))["judge_detected"].to_pylist()) == 4


def test_the_order_of_arrival_changes_no_byte(audit) -> None:
    content, descriptions, seen = audit
    assert render_parquet("a1", content, descriptions, seen[::-1]) == render_parquet("a1", *audit)


def test_more_judgements_than_judges_are_refused(audit) -> None:
    with pytest.raises(ValueError, match="4 judgements"):
        render_parquet("a1", audit[0], [], [Observation(judgements=[Judgement()] * 4)])


def _again(file: Path, table: pa.Table, **metadata: str) -> None:
    merged = {key.decode(): value.decode() for key, value in pq.read_table(file).schema.metadata.items()} | {
        f"unerase.{key}": value for key, value in metadata.items()
    }
    pq.write_table(table.replace_schema_metadata(merged), file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(b""), "not a complete Parquet file"),
        (lambda file: file.write_bytes(b"not parquet" * 9), "not a complete Parquet file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "not a complete Parquet file"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:100] + file.read_bytes()[140:]),
            "not a complete Parquet file",
        ),
        (lambda file: pq.write_table(pa.table({"a": [1]}), file), "not made by unerase"),
        (lambda file: _again(file, pq.read_table(file), schema_version="2.0"), "has version 2.0"),
        (lambda file: _again(file, pq.read_table(file).drop_columns("arm")), "its columns are not those"),
        (lambda file: _again(file, pq.read_table(file).slice(1)), "its rows are not those"),
        (lambda file: _again(file, pq.read_table(file), content="{"), "unerase.content cannot be read"),
        (lambda file: _again(file, pq.read_table(file), descriptions="[1]"), "unerase.descriptions cannot be read"),
    ],
)
def test_a_bad_file_is_told_from_a_good_one(file: Path, spoil, message: str) -> None:
    spoil(file)
    with pytest.raises(ValueError, match=message) as caught:
        conclude_file(file, Tolerances())
    assert str(caught.value).startswith(f"{file}: it")
    assert "\n" not in str(caught.value)


def test_a_later_minor_version_is_read(file: Path) -> None:
    before = conclude_file(file, Tolerances()).verdict
    _again(file, pq.read_table(file), schema_version="1.7")
    assert conclude_file(file, Tolerances()).verdict == before


def test_a_file_from_before_there_were_accesses_is_read(audit, tmp_path: Path) -> None:
    content, _, seen = audit
    path = tmp_path / "old.parquet"
    path.write_bytes(render_parquet("a1", *audit))
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"unerase.schema_version": b"1.1"}
    pq.write_table(table.drop_columns(["access"]).replace_schema_metadata(metadata), path)
    read = read_parquet(path.read_bytes())
    assert _bytes(read.observations) == _bytes(seen)
    assert conclude_file(path, Tolerances()).verdict == conclude(
        seen, audit[1], content.spec.battery.evaluations, content.spec
    )


def test_both_verdicts_follow_from_the_file(audit, tmp_path: Path) -> None:
    """The filter withholds what the weights show."""
    content, descriptions, seen = audit
    content.spec.access = ModelAccess.MODEL_ACCESS_BOTH
    both = []
    for one in seen:
        if one.role != ModelRole.MODEL_ROLE_SUBJECT:
            both.append(one)
            continue
        for access in (ModelAccess.MODEL_ACCESS_DEPLOYED, ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS):
            copy = Observation()
            copy.CopyFrom(one)
            copy.access = access
            if access == ModelAccess.MODEL_ACCESS_DEPLOYED:
                copy.status, copy.reason = SampleStatus.SAMPLE_STATUS_WITHHELD, "prompt-filter"
                del copy.judgements[:]
            both.append(copy)
    path = tmp_path / "both.parquet"
    path.write_bytes(render_parquet("a1", content, descriptions, both))
    online = conclude(both, descriptions, content.spec.battery.evaluations, content.spec)
    assert conclude_file(path, Tolerances()).verdict == online
    assert online.deployed.evaluations[0].subject.withheld == 24
    assert pq.read_table(path)["status"].to_pylist().count("withheld") == 48
