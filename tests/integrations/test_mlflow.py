"""A campaign in MLflow, read back by MLflow's own client: `make integrations`."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from typer.testing import CliRunner

from support import campaign_by_hand
from unerase._cli import app
from unerase.v1.campaigns_pb2 import CampaignReport

pytestmark = pytest.mark.integrations
mlflow = pytest.importorskip("mlflow")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder for MLflow; its package `mlflow`, beside `mlflow-skinny`, has databases as well."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "runs").as_uri()


def logged(report: CampaignReport, place: str, folder: Path) -> str:
    path = folder / "campaign.json"
    path.write_text(json_format.MessageToJson(report, preserving_proto_field_name=True))
    arguments = ["export", "mlflow", str(path), "--experiment", "releases", "--tracking-uri", place]
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert ended.exit_code == 0, ended.output
    return ended.stdout.strip()


def test_a_campaign_is_a_run_with_a_run_for_each_cell(place: str, tmp_path: Path) -> None:
    report = campaign_by_hand.campaign().whole
    run_id = logged(report, place, tmp_path)
    client = mlflow.MlflowClient(place)
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["unerase.gate"] == "fail"
    assert parent.data.metrics["cells"] == len(report.content.cells)
    assert parent.info.start_time == report.create_time.ToMilliseconds()
    (artifact,) = client.list_artifacts(run_id)
    kept = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact.path, tracking_uri=place))
    assert json_format.Parse(kept.read_text(), CampaignReport()) == report

    runs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(report.content.cells)
    for cell in report.content.cells:
        run: Any = by_name[f"{cell.subject} x {cell.concept}"]
        assert run.data.params == {"subject": cell.subject, "concept": cell.concept}
        assert run.info.status == ("FINISHED" if cell.HasField("verdict") else "FAILED")
        for result in cell.verdict.evaluations:
            assert run.data.metrics[f"{result.name}/subject_rate"] == result.subject.hits / result.subject.cases


def test_each_log_is_a_new_run_of_the_same_experiment(place: str, tmp_path: Path) -> None:
    report = campaign_by_hand.campaign(subjects=("models/one",), concepts=("hourglass", "heart")).whole
    first, second = logged(report, place, tmp_path), logged(report, place, tmp_path)
    client = mlflow.MlflowClient(place)
    assert first != second
    assert client.get_run(first).info.experiment_id == client.get_run(second).info.experiment_id


def test_what_mlflow_refuses_is_said(tmp_path: Path) -> None:
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps({"campaign_id": "c1", "content": {}}))
    arguments = ["export", "mlflow", str(path), "--tracking-uri", "nothing://here"]
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert (ended.exit_code, "MLflow refuses" in ended.output) == (2, True)
