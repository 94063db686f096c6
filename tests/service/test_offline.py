"""What is exported from a real backend: the same verdict offline, and a calibration of audits run together."""

import json
from pathlib import Path

from typer.testing import CliRunner

from support.serving import Running
from unerase import Client
from unerase._cli import app
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Tolerances
from unerase_backend.report.offline import conclude_file

from .conftest import small_spec


def test_the_same_verdict_follows_from_the_export(client: Client, tmp_path: Path) -> None:
    audit = client.create_audit(small_spec(seed_base=31, cases=2, steps=2))
    *_, last = client.watch(audit.id, timeout=60)
    assert last.state_changed.state == AUDIT_STATE_SUCCEEDED
    file = tmp_path / "observations.parquet"
    file.write_bytes(client.report_parquet(audit.id))
    assert client.report_parquet(audit.id) == file.read_bytes()
    offline = conclude_file(file, Tolerances())
    assert offline.verdict == last.state_changed.verdict
    assert (offline.id, offline.spec) == (audit.id, last.state_changed.spec)


def test_models_of_known_truth_are_calibrated_together(backend: Running, tmp_path: Path) -> None:
    arguments = ["calibrate", "--out", str(tmp_path / "calibration.json"), "--address", backend.address]
    arguments += ["--reports", str(tmp_path / "reports")]
    arguments += ["--models", "testbed/reference", "--models", "testbed/never", "--cases", "2", "--steps", "6"]
    arguments += ["--concept", "hourglass", "--battery", "", "--evaluation", "standard-prompt"]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    calibrated = json.loads((tmp_path / "calibration.json").read_text())
    (evaluation,) = calibrated["evaluations"]
    (point,) = evaluation["budgets"]
    assert point["sensitivity"]["cases"] == point["specificity"]["cases"] == 2
    assert (point["sensitivity"]["hits"], point["specificity"]["hits"]) == (2, 2)
    assert "| Standard prompt | 1 |" in ended.stdout
    forms = [f"{model}.{form}" for model in ("never", "reference") for form in ("html", "json", "parquet")]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == forms
    assert (
        json.loads((tmp_path / "reports" / "never.json").read_text())["content"]["spec"]["subject"] == "testbed/never"
    )
