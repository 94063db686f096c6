"""Cases decided from an observations table, against the backend's own decision."""

import io

from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from unerase.integrations._deciding import COLUMNS, decide
from unerase.v1.audits_pb2 import AuditSpec, ReportContent
from unerase.v1.types_pb2 import DecidedBy, EvaluationDescription, Judgement, ModelRole, Observation, SampleStatus
from unerase_backend.report.parquet import render_parquet
from unerase_backend.verdict.figures import Table

SUBJECT, CONTROL = ModelRole.MODEL_ROLE_SUBJECT, ModelRole.MODEL_ROLE_CONTROL
CASES = 4


@st.composite
def observed(draw: st.DrawFn) -> list[Observation]:
    """Draws of two models in several arms, of every status; equal selector scores are frequent."""
    seen = []
    places = st.tuples(
        st.sampled_from((SUBJECT, CONTROL)),
        st.integers(0, CASES - 1),
        st.sampled_from(("", "noise", "prompt@5", "prompt@40")),
        st.integers(0, 2),
    )
    for role, case, arm, variant in draw(st.sets(places, min_size=1, max_size=30)):
        status = draw(st.sampled_from([value for value in SampleStatus.values() if value]))
        observation = Observation(
            evaluation="e", role=role, case_index=case, arm=arm, variant=variant, status=status, picture_digest="ab"
        )
        if status == SampleStatus.SAMPLE_STATUS_SCORED:
            for judge in range(draw(st.sampled_from((3, 3, 3, 2)))):
                score = draw(st.sampled_from((0.1, 0.5, 0.5, 0.9, float("nan"))))
                observation.judgements.add(judge=str(judge), score=score, detected=draw(st.booleans()))
        seen.append(observation)
    return seen


@given(
    seen=observed(),
    arms=st.sampled_from(([], ["noise"], ["prompt@*"], ["", "prompt@40"])),
    decided_by=st.sampled_from((DecidedBy.DECIDED_BY_BOTH, DecidedBy.DECIDED_BY_JUDGE)),
)
def test_it_decides_as_the_backend_does(
    seen: list[Observation], arms: list[str], decided_by: DecidedBy.ValueType
) -> None:
    description = EvaluationDescription(name="e", deciding_arms=arms)
    spec = AuditSpec(subject="s", concept="c", decided_by=decided_by)
    file = render_parquet("a1", ReportContent(spec=spec), [description], seen)
    rows = parquet.read_table(io.BytesIO(file)).select(COLUMNS).to_pylist()
    ours = decide(rows, description, decided_by)
    table = Table.of(description, seen, spec, cases=CASES, looked_at=False)
    theirs = table.decided[SUBJECT]
    for at, case in enumerate(table.rows):
        found = ours.get(case)
        assert (found is not None and found.detected is not None) == theirs.scored[at]
        assert (found is None or found.doubtful or (found.detected is None and not theirs.excluded[at])) == (
            theirs.doubtful[at]
        )
        if found is not None and found.detected is not None:
            assert found.detected == theirs.detected[at]
            assert (found.draw["status"] == "withheld") == theirs.withheld[at]


def test_the_draw_that_decided_is_named() -> None:
    judgements = [Judgement(judge="clip", score=0.5), Judgement(judge="j", detected=True), Judgement(judge="k")]
    seen = [
        Observation(
            evaluation="e",
            role=SUBJECT,
            variant=variant,
            status=SampleStatus.SAMPLE_STATUS_SCORED,
            judgements=judgements,
            picture_digest=f"{variant}",
        )
        for variant in (1, 0)
    ]
    spec = AuditSpec(decided_by=DecidedBy.DECIDED_BY_BOTH)
    description = EvaluationDescription(name="e")
    rows = parquet.read_table(
        io.BytesIO(render_parquet("a1", ReportContent(spec=spec), [description], seen))
    ).to_pylist()
    both = decide(rows, description, DecidedBy.DECIDED_BY_BOTH)[0]
    assert (both.detected, both.draw["picture_digest"]) == (False, "0")
    assert decide(rows, description, DecidedBy.DECIDED_BY_JUDGE)[0].detected is True
