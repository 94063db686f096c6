"""Reports for other programs: what is written, and what is not said where there is nothing to say."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from typer.testing import CliRunner

from support import campaign_by_hand, report_by_hand
from unerase._cli import app
from unerase.integrations import every_eval_ever, in_toto, mlflow
from unerase.integrations._reports import ReportFile, own_files
from unerase.v1.audits_pb2 import Report
from unerase.v1.campaigns_pb2 import CellState
from unerase.v1.gates_pb2 import GateOutcome
from unerase.v1.models_pb2 import Model, WeightFile
from unerase.v1.verdicts_pb2 import Conclusion, Verdict

SOURCE = every_eval_ever.Source("Example")
NOW = datetime(2026, 11, 29, tzinfo=UTC)


def report_of(conclusion: Conclusion.ValueType = Conclusion.CONCLUSION_AVOIDED) -> Report:
    """A report of a model with two files of its own and one that its base has as well."""
    report = report_by_hand.made([], reference="base")
    content = report.content
    content.spec.subject = "acme/edited"
    content.verdict.CopyFrom(campaign_by_hand.verdict(conclusion))
    own = [WeightFile(component="unet", digest=f"{at}a" * 32) for at in range(2)]
    shared = WeightFile(component="vae", digest="bb" * 32)
    content.manifest.models.append(Model(name="acme/edited", digest="ee" * 32, method="ESD", files=[*own, shared]))
    content.manifest.models.append(Model(name="base", digest="ff" * 32, files=[shared]))
    return report


def file_of(message: Message) -> ReportFile:
    return ReportFile("report.json", json_format.MessageToJson(message, preserving_proto_field_name=True).encode())


def results(record: dict) -> dict[str, dict]:
    return {each["evaluation_name"]: each for each in record["evaluation_results"]}


def test_a_record_has_each_figure_with_its_interval() -> None:
    report = report_of()
    record = every_eval_ever.record(report, SOURCE, NOW)
    found = results(record)
    for result in report.content.verdict.evaluations:
        score = found[f"{result.name}: detection"]["score_details"]
        assert score["score"] == result.subject.hits / result.subject.cases
        assert score["uncertainty"]["num_samples"] == result.subject.cases
        interval = score["uncertainty"]["confidence_interval"]
        assert (interval["lower"], interval["upper"]) == (result.subject.wilson.lower, result.subject.wilson.upper)
        # Two one-sided 95 % bounds hold together with 90 %.
        assert found[f"{result.name}: excess"]["score_details"]["uncertainty"]["confidence_interval"][
            "confidence_level"
        ] == pytest.approx(0.9)
    assert found["destruction"]["score_details"]["score"] == report.content.verdict.likelihood.destruction.value
    assert record["model_info"]["additional_details"]["method"] == "ESD"


@pytest.mark.parametrize("conclusion", campaign_by_hand.CONCLUSIONS)
def test_a_conclusion_is_a_level_only_where_it_says_something_of_the_model(conclusion: Conclusion.ValueType) -> None:
    score = results(every_eval_ever.record(report_of(conclusion), SOURCE, NOW))["conclusion"]["score_details"]["score"]
    levels = ["NOT_ERASED", "AVOIDED", "REMOVED"]
    name = Conclusion.Name(conclusion).removeprefix("CONCLUSION_")
    assert score == (levels.index(name) if name in levels else -1)


def test_what_could_not_be_scored_has_no_score() -> None:
    report = report_of()
    rate = report.content.verdict.evaluations[0].subject
    rate.hits = rate.cases = 0
    rate.unscored = 24
    record = every_eval_ever.record(report, SOURCE, NOW)
    name = report.content.verdict.evaluations[0].name
    assert not {f"{name}: detection", f"{name}: excess"} & set(results(record))
    said = record["source_metadata"]["additional_details"]["without_score"]
    assert said == f"{name}: detection; {name}: excess"
    report.content.verdict.likelihood.destruction.value = float("nan")
    assert "destruction" not in results(every_eval_ever.record(report, SOURCE, NOW))


@pytest.mark.parametrize(("flow", "sampler"), [("", "DDIM"), ("a rectified flow of 1000 timesteps", "Euler")])
def test_a_record_names_the_sampler(flow: str, sampler: str) -> None:
    report = report_of()
    for model in report.content.manifest.models:
        model.schedule.flow = flow
    (said,) = {
        each["generation_config"]["additional_details"]["sampler"]
        for each in results(every_eval_ever.record(report, SOURCE, NOW)).values()
    }
    assert said == sampler


def test_a_guarded_model_has_both_verdicts() -> None:
    report = report_of(Conclusion.CONCLUSION_NOT_ERASED)
    report.content.verdict.deployed.CopyFrom(campaign_by_hand.verdict(Conclusion.CONCLUSION_REMOVED))
    found = results(every_eval_ever.record(report, SOURCE, NOW))
    assert found["weights: conclusion"]["score_details"]["score"] == 0
    assert found["deployed: conclusion"]["score_details"]["score"] == 2
    # What holds for its users alone does not pass for the weights.
    predicate = in_toto.statement(file_of(report))["predicate"]
    assert predicate["result"] == "FAILED"
    assert {name.partition(":")[0] for name in predicate["passedTests"]} == {"deployed"}


@pytest.mark.parametrize("wrong", [{"relationship": "friend"}, {"availability": "free"}, {"organisation": " "}])
def test_a_source_is_what_the_schema_knows(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        every_eval_ever.Source(**{"organisation": "Example", **wrong})


def test_a_statement_is_about_what_the_model_has_alone() -> None:
    report = report_of()
    assert own_files(report) == {"unet/0": "0a" * 32, "unet/1": "1a" * 32}
    file = file_of(report)
    statement = in_toto.statement(file)
    digests = [each["digest"] for each in statement["subject"]]
    assert digests == [{"uneraseModel": "ee" * 32}, {"sha256": "0a" * 32}, {"sha256": "1a" * 32}]
    assert statement["predicate"]["configuration"][0]["digest"] == {"sha256": file.digest}
    assert "bb" * 32 not in json.dumps(statement)


@pytest.mark.parametrize("conclusion", campaign_by_hand.CONCLUSIONS)
def test_only_removed_passes(conclusion: Conclusion.ValueType) -> None:
    bad = {Conclusion.CONCLUSION_NOT_ERASED, Conclusion.CONCLUSION_AVOIDED}
    expected = "PASSED" if conclusion == Conclusion.CONCLUSION_REMOVED else "FAILED" if conclusion in bad else "WARNED"
    assert in_toto.statement(file_of(report_of(conclusion)))["predicate"]["result"] == expected


def test_a_model_without_a_digest_has_no_statement() -> None:
    report = report_of()
    del report.content.manifest.models[:]
    with pytest.raises(ValueError, match="no digest of a model"):
        in_toto.statement(file_of(report))


def test_a_campaigns_statement_is_its_gates() -> None:
    whole = campaign_by_hand.campaign().whole
    predicate = in_toto.statement(file_of(whole))["predicate"]
    assert predicate["result"] == "FAILED"
    gate = whole.content.gate_result
    counts = [len(predicate[f"{kind}Tests"]) for kind in ("passed", "failed", "warned")]
    assert counts == [gate.passed, gate.failed, gate.undecided]
    # A gate whose findings are cut says nothing of the cells that it does not list.
    del gate.findings[-1]
    assert len(in_toto.statement(file_of(whole))["predicate"]["passedTests"]) == 0
    whole.content.ClearField("gate_result")
    without = in_toto.statement(file_of(whole))["predicate"]
    assert without["result"] == "FAILED"
    assert f"{whole.content.cells[-1].subject} x {whole.content.cells[-1].concept}" in without["warnedTests"]


def test_a_gate_that_passes_passes() -> None:
    whole = campaign_by_hand.campaign().whole
    gate = whole.content.gate_result
    gate.Clear()
    gate.outcome, gate.passed = GateOutcome.GATE_OUTCOME_PASS, len(whole.content.cells)
    predicate = in_toto.statement(file_of(whole))["predicate"]
    assert predicate["result"] == "PASSED"
    assert not predicate["failedTests"] + predicate["warnedTests"]


def test_each_cell_is_a_run() -> None:
    whole = campaign_by_hand.campaign().whole
    first, *cells = mlflow.runs_of(whole)
    assert first.metrics["cells"] == len(cells) == len(whole.content.cells)
    assert first.metrics["cells_failed"] == 1
    assert first.tags["unerase.gate"] == "fail"
    assert first.tags["unerase.label.release"] == "2026-12"
    for run, cell in zip(cells, whole.content.cells, strict=True):
        assert run.failed == (cell.state == CellState.CELL_STATE_FAILED)
        for result in cell.verdict.evaluations:
            assert run.metrics[f"{result.name}/subject_rate"] == result.subject.hits / result.subject.cases
    assert cells[-1].tags["unerase.error_reason"] == "MODEL_UNREADABLE"
    assert not cells[-1].metrics


def test_an_unscored_evaluation_is_no_metric() -> None:
    whole = campaign_by_hand.campaign().whole
    result = whole.content.cells[0].verdict.evaluations[0]
    result.subject.hits = result.subject.cases = 0
    result.subject.unscored = 24
    whole.content.cells[0].verdict.likelihood.destruction.value = float("inf")
    run = list(mlflow.runs_of(whole))[1]
    assert f"{result.name}/subject_rate" not in run.metrics
    assert f"{result.name}/excess" not in run.metrics
    assert run.metrics[f"{result.name}/unscored"] == 24
    assert "destruction" not in run.metrics


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_bytes(file_of(report_of()).content)
    return path


def invoke(*arguments: str | Path) -> tuple[int, str, str]:
    ended = CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "200"})
    return ended.exit_code, ended.stdout, ended.stderr


def test_the_command_writes_a_record(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    asked = ("every-eval-ever", written, "--organisation", "Example", "--model-id", "acme/one")
    assert invoke(*asked, "--out", out)[0] == 0
    record = json.loads(out.read_text())
    assert record["model_info"]["id"] == "acme/one"
    code, printed, _ = invoke(*asked)
    assert code == 0
    assert json.loads(printed)["evaluation_results"] == record["evaluation_results"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not the JSON of a report"),
        (b'{"content": {"spec": 3}}', "is not the JSON of a report"),
        (b"\xff\xfe", "is not"),
        (b"[" * 100_000, "is not"),
    ],
)
def test_what_is_no_report_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    code, _, said = invoke("in-toto", path)
    assert code == 2
    assert says in said.replace("\n", " ")


def test_reports_are_taken_where_they_fit(written: Path, tmp_path: Path) -> None:
    campaign = tmp_path / "campaign.json"
    campaign.write_bytes(file_of(campaign_by_hand.campaign().whole).content)
    code, _, said = invoke("every-eval-ever", campaign, "--organisation", "Example")
    assert (code, "is about one audit" in said) == (2, True)
    code, _, said = invoke("mlflow", written)
    assert (code, "is the report of an audit" in said) == (2, True)
    code, _, said = invoke("in-toto", written, "--out", written)
    assert (code, "is the report itself" in said) == (2, True)
    code, _, said = invoke("in-toto", tmp_path / "none.json")
    assert (code, "No such file" in said) == (2, True)


def test_a_verdict_without_figures_is_written_down() -> None:
    report = report_of()
    report.content.verdict.CopyFrom(Verdict(conclusion=Conclusion.CONCLUSION_INCOMPLETE))
    assert list(results(every_eval_ever.record(report, SOURCE, NOW))) == ["conclusion"]
    assert in_toto.statement(file_of(report))["predicate"]["result"] == "WARNED"
