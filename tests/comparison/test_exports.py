"""Two exported audits, compared without a backend: the same comparison as of the audits themselves."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.compared_by_hand import Audit
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase.v1.comparisons_pb2 import Change
from unerase_backend.comparison import Recorded, compare_audits
from unerase_backend.report import render_parquet
from unerase_backend.report.offline import compare_files


def exported(folder: Path, recorded: Recorded) -> Path:
    path = folder / f"{recorded.id}.parquet"
    content = recorded.content
    path.write_bytes(render_parquet(recorded.id, content, content.descriptions, recorded.observations))
    return path


def audit(hits: int, **fields: object) -> Audit:
    made = Audit(**fields)  # type: ignore[arg-type]
    made.hits("noise-based", 3).hits("standard-prompt", hits).likelihood([0.5, 0.7, 0.2], [0.1, 0.2])
    made.concept.names.append("sandglass")
    made.manifest.models.add(name="c", digest="d-control", never_learned=["hourglass"])
    return made


def test_exports_give_the_same_comparison(tmp_path: Path) -> None:
    one, other = audit(0).recorded("a1"), audit(12, digest="d-new").recorded("a2")
    comparison = compare_files(exported(tmp_path, one), exported(tmp_path, other))
    assert comparison == compare_audits(one, other)
    assert comparison.alike
    assert comparison.change == Change.CHANGE_WORSE


def test_a_file_that_is_no_export_is_named(tmp_path: Path) -> None:
    good, bad = exported(tmp_path, audit(0).recorded("a1")), tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"bad\.parquet: it is not a complete Parquet file"):
        compare_files(good, bad)


def test_an_audit_without_a_valid_verdict_has_no_comparison(tmp_path: Path) -> None:
    """Its control is its subject, by the digests of the manifest."""
    one = audit(0, digest="d-control").recorded("a1")
    with pytest.raises(ValueError, match=r"a1\.parquet: spec.control: is the subject 's' under another name"):
        compare_files(exported(tmp_path, one), exported(tmp_path, audit(0).recorded("a2")))


def test_the_command_compares_files_without_a_backend(tmp_path: Path) -> None:
    one, other = (exported(tmp_path, each) for each in (audit(0).recorded("a1"), audit(12).recorded("a2")))
    shown = CliRunner().invoke(app, ["compare", str(one), str(other)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "Standard-prompt" in shown.stdout
    assert "12 only now" in shown.stdout
    said = CliRunner().invoke(app, ["compare", str(one), str(other), "--json"])
    assert json.loads(said.stdout)["change"] == "CHANGE_WORSE"
    missing = CliRunner().invoke(app, ["compare", str(one), str(tmp_path / "missing.parquet")])
    assert missing.exit_code == ExitCode.BAD_INPUT
    assert "missing.parquet: No such file" in missing.stderr
    mixed = CliRunner().invoke(app, ["compare", str(one), "0123456789abcdef0123456789abcdef"])
    assert mixed.exit_code == ExitCode.BAD_INPUT
    assert "an audit and a file cannot be compared" in mixed.stderr
