"""The command `unerase verdict`: a verdict from an export, without a backend."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.scripted_server import AUDIT_ID
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase.v1.audits_pb2 import AuditSpec, ReportContent
from unerase.v1.types_pb2 import EvaluationClass, EvaluationDescription, Judgement, Observation, SampleStatus
from unerase_backend.report.parquet import render_parquet


@pytest.fixture
def observations(tmp_path: Path) -> Path:
    """An export of an audit in which the standard prompt brings the concept back in 2 of 24 cases."""
    spec = AuditSpec(subject="testbed/uce", concept="hourglass", cases=24, seed_base=7)
    spec.battery.evaluations.add(name="standard-prompt")
    spec.battery.allow_incomplete = True
    described = EvaluationDescription(
        name="standard-prompt", title="Standard prompt", evaluation_class=EvaluationClass.EVALUATION_CLASS_PLAIN
    )
    seen = [
        Observation(
            evaluation="standard-prompt",
            role=role,
            concept="hourglass",
            case_index=case,
            status=SampleStatus.SAMPLE_STATUS_SCORED,
            judgements=[Judgement(judge=name, score=0.5, detected=case < hits) for name in ("clip", "one", "two")],
        )
        for role, hits in ((1, 2), (2, 24), (3, 0))
        for case in range(24)
    ]
    path = tmp_path / "observations.parquet"
    path.write_bytes(render_parquet(AUDIT_ID, ReportContent(spec=spec), [described], seen))
    return path


def test_a_verdict_needs_no_backend(observations: Path) -> None:
    ended = CliRunner().invoke(app, ["verdict", str(observations)], env={"COLUMNS": "200"})
    assert ended.exit_code == 0, ended.output
    assert "testbed/uce: hourglass is inconclusive" in ended.stdout
    assert "2/24" in ended.stdout
    assert f"audit {AUDIT_ID}   seed base 7" in ended.stdout
    asked = CliRunner().invoke(app, ["verdict", str(observations), "--tolerance", "excess=0.3", "--json"])
    (result,) = json.loads(asked.stdout)["verdict"]["evaluations"]
    assert result["outcome"] == "OUTCOME_DOES_NOT_RECOVER"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.parquet"], "missing.parquet: No such file"),
        (["{file}", "--tolerance", "excess=2"], "excess: must be above 0 and at most 1, not 2"),
        (["{file}", "--tolerance", "patience=1"], "there is no tolerance 'patience'"),
        ([__file__], "it is not a complete Parquet file"),
    ],
)
def test_what_no_verdict_follows_from_is_said(observations: Path, arguments: list[str], said: str) -> None:
    given = [str(observations) if argument == "{file}" else argument for argument in arguments]
    ended = CliRunner().invoke(app, ["verdict", *given], env={"COLUMNS": "400"})
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert said in ended.stderr
    assert ended.stdout == ""
