"""`unerase campaign`, `unerase models` and `unerase compare`, against the scripted server."""

import json
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from support.scripted_campaigns import CAMPAIGN_EVENTS, CAMPAIGN_ID, CELLS, FORMS
from support.scripted_server import Script, failing, until_inactive
from unerase import (
    CampaignReportFormat,
    CampaignState,
    CellComparison,
    Change,
    Conclusion,
    GateOutcome,
)
from unerase._cli import app
from unerase.v1.audits_pb2 import CreateAuditRequest, ListAuditsRequest
from unerase.v1.campaigns_pb2 import (
    CreateCampaignRequest,
    EvaluateGateRequest,
    GetCampaignReportRequest,
    ListCampaignsRequest,
    ListCellsRequest,
    RetryCampaignRequest,
)
from unerase.v1.server_pb2 import ServerInfo

FORM = {
    "--html": CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_HTML,
    "--cells-csv": CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_CSV,
    "--cells-parquet": CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_PARQUET,
    "--observations": CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_OBSERVATIONS_PARQUET,
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A campaign file, with a gate of its own."""
    (tmp_path / "campaign.yaml").write_text(
        "{subjects: [testbed/uce, testbed/reference], concepts: [hourglass, heart], gate: {excess: 0.5},"
        ' labels: {release: "1", team: a}}'
    )
    return str(tmp_path / "campaign.yaml")


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "200"})


def passing(script: Script, outcome: GateOutcome.ValueType = GateOutcome.GATE_OUTCOME_PASS) -> None:
    """Let the campaign end with every cell, and its gate say something."""
    ended = script.campaign.ended
    ended.gate_result.outcome = outcome
    ended.gate_result.statement = "All 4 cells pass."
    if outcome != GateOutcome.GATE_OUTCOME_PASS:
        ended.gate_result.findings.add(
            subject="testbed/uce",
            concept="hourglass",
            clause="excess",
            outcome=outcome,
            evaluation="textual-inversion",
            description="0.92 is above 0.5",
        )


def test_a_campaign_is_created_and_goes_on_by_itself(address: str, script: Script, file: str) -> None:
    created = run(address, "campaign", "create", file, "--label", "release=2", "--label", "stage=ci")
    assert (created.exit_code, created.stdout) == (0, f"{CAMPAIGN_ID}\n")
    (request,) = script.seen(CreateCampaignRequest)
    assert list(request.spec.subjects) == ["testbed/uce", "testbed/reference"]
    # An option replaces the file's label of the same key.
    assert dict(request.labels) == {"release": "2", "team": "a", "stage": "ci"}
    assert request.spec.gate.excess == 0.5


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (GateOutcome.GATE_OUTCOME_PASS, 0),
        (GateOutcome.GATE_OUTCOME_FAIL, 5),
        (GateOutcome.GATE_OUTCOME_UNDECIDED, 6),
    ],
)
def test_the_exit_code_is_the_gates(
    address: str, script: Script, file: str, tmp_path: Path, outcome: GateOutcome.ValueType, code: int
) -> None:
    passing(script, outcome)
    (tmp_path / "gate.yaml").write_text("worst_conclusion: removed")
    gate = ("--gate", str(tmp_path / "gate.yaml"))
    for form in ((), ("--json",)):
        ended = run(address, "campaign", "create", file, "--wait", *gate, *form)
        assert ended.exit_code == code, ended.output
    assert run(address, "campaign", "watch", CAMPAIGN_ID).exit_code == code
    assert run(address, "campaign", "watch", CAMPAIGN_ID, "--json").exit_code == code
    # The option replaces the file's gate, and says so.
    assert script.seen(CreateCampaignRequest)[0].spec.gate.worst_conclusion == Conclusion.CONCLUSION_REMOVED
    assert "replaces the gate" in run(address, "campaign", "create", file, *gate).stderr


def test_a_campaign_is_followed_and_shown(address: str, script: Script, file: str) -> None:
    passing(script, GateOutcome.GATE_OUTCOME_FAIL)
    ended = run(address, "campaign", "create", file, "--wait")
    assert f"campaign {CAMPAIGN_ID} is accepted, with 4 cells." in ended.stderr
    # Where nobody looks at a terminal, a line for each per cent, and one for each cell that failed.
    assert "0/4 cells: running\n" in ended.stderr
    assert "1/4 cells: 1 avoided\n" in ended.stderr
    assert "testbed/reference x heart: failed DATA_LOSS an artefact is damaged\n" in ended.stderr
    assert "4/4 cells: 1 avoided, 1 failed, 1 not erased, 1 removed\n" in ended.stderr
    matrix = [line.split("  ") for line in ended.stdout.splitlines() if line.startswith(("model", "testbed"))]
    assert [[word.strip() for word in row if word.strip()] for row in matrix] == [
        ["model", "hourglass", "heart"],
        ["testbed/uce", "avoided", "not erased"],
        ["testbed/reference", "removed", "failed DATA_LOSS"],
    ]
    assert "gate: fail" in ended.stdout
    assert "fail: testbed/uce x hourglass: excess by textual-inversion: 0.92 is above 0.5" in ended.stdout


def test_without_a_gate_every_cell_must_have_a_verdict(address: str, script: Script, file: str) -> None:
    ended = run(address, "campaign", "create", file, "--wait")
    assert ended.exit_code == 3
    assert f"1 of 4 cells has no verdict: `unerase campaign cells {CAMPAIGN_ID}` says why" in ended.stderr
    script.campaign.ended.cells.failed = 0
    assert run(address, "campaign", "create", file, "--wait").exit_code == 0
    script.campaign.ended.state = CampaignState.CAMPAIGN_STATE_CANCELLED
    cancelled = run(address, "campaign", "create", file, "--wait")
    assert (cancelled.exit_code, cancelled.stderr.splitlines()[-1]) == (3, f"campaign {CAMPAIGN_ID}: cancelled")


def test_every_form_of_the_report_is_written(address: str, script: Script, file: str, tmp_path: Path) -> None:
    passing(script)
    paths = {option: tmp_path / option.strip("-") for option in (*FORM, "--json-file")}
    options = [each for option, path in paths.items() for each in (option, str(path))]
    for command in (("create", file, "--wait"), ("report", CAMPAIGN_ID)):
        ended = run(address, "campaign", *command, *options)
        assert ended.exit_code == 0, ended.output
        for option, form in FORM.items():
            assert paths[option].read_bytes() == FORMS[form][0]
            assert f"report: {paths[option]}" in ended.stderr
            paths[option].unlink()
        assert json.loads(paths["--json-file"].read_bytes())["campaignId"] == CAMPAIGN_ID
    assert len(script.seen(GetCampaignReportRequest)) == 10


def test_a_report_of_many_pages_says_so(
    address: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, FORM["--html"], (b"PK\x03\x04", "application/zip"))
    ended = run(address, "campaign", "report", CAMPAIGN_ID, "--html", str(tmp_path / "pages.zip"))
    assert "a ZIP file of pages: begin with index.html" in ended.stderr


def test_a_plan_says_what_a_campaign_would_take(address: str, script: Script, file: str) -> None:
    script.cost.units, script.cost.pictures = 12_345, 67
    planned = run(address, "campaign", "create", file, "--dry-run")
    assert (planned.exit_code, "4 cells: 2 models x 2 concepts" in planned.stdout) == (0, True)
    assert "12,345" in planned.stdout
    assert script.seen(CreateCampaignRequest)[0].validate_only
    assert json.loads(run(address, "campaign", "create", file, "--dry-run", "--json").stdout)["cells_total"] == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--html", "x.html"], "need --wait"),
        (["--local"], "--local needs --wait"),
        (["--wait", "--dry-run"], "cannot be combined"),
        (["--wait", "--data-dir", "x"], "--data-dir needs --local"),
        (["--wait", "--html", "x", "--cells-csv", "x"], "same file"),
        (["--label", "a"], "--label a: must be KEY=VALUE"),
        (["--label", "a=1", "--label", "a=2"], "a has another value already"),
        (["--gate", "{folder}/none.yaml"], "No such file"),
    ],
)
def test_what_does_not_go_together_is_refused(
    address: str, script: Script, file: str, tmp_path: Path, options: list[str], says: str
) -> None:
    ended = run(address, "campaign", "create", file, *(each.format(folder=tmp_path) for each in options))
    assert ended.exit_code == 2, ended.output
    assert says in ended.stderr
    assert not script.requests


def test_a_file_that_is_no_campaign_is_refused_with_its_line(address: str, script: Script, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("subjects: [a]\nconcepts: [b]\nwindow: none\n")
    ended = run(address, "campaign", "create", str(bad))
    assert ended.exit_code == 2
    assert f"{bad}: line 3: window: must be a whole number from 1 to 1024, not 'none'" in ended.stderr
    assert not script.requests


def test_a_wait_that_ends_says_how_to_go_on(address: str, script: Script, file: str) -> None:
    script.breaks, script.after_break = [2], until_inactive
    ended = run(address, "campaign", "create", file, "--wait", "--timeout", "0.4")
    assert ended.exit_code == 124
    assert f"The campaign goes on. `unerase campaign watch {CAMPAIGN_ID}` follows it" in ended.stderr


def test_an_answer_that_is_lost_says_how_to_find_out(address: str, script: Script, file: str) -> None:
    script.failures["CreateCampaign"] = [failing(grpc.StatusCode.UNAVAILABLE, "gone")] * 9
    ended = run(address, "campaign", "create", file, "--request-id", "mine")
    assert ended.exit_code == 4
    assert "whether the campaign was accepted: run the same command with --request-id mine" in ended.stderr


def test_events_are_lines_of_json(address: str) -> None:
    events = run(address, "campaign", "watch", CAMPAIGN_ID, "--json", "--after", "2").stdout.splitlines()
    assert [int(json.loads(line)["sequence"]) for line in events] == list(range(3, CAMPAIGN_EVENTS + 1))
    assert run(address, "campaign", "watch", CAMPAIGN_ID, "--after", "2").exit_code == 2


def test_campaigns_and_cells_are_listed(address: str, script: Script) -> None:
    listed = run(address, "campaign", "list", "--filter", "state = FAILED")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [f"c{index}" for index in range(5)]
    ids = run(address, "campaign", "list", "--ids", "--filter", "state = FAILED").stdout
    assert ids.splitlines() == [f"c{index}" for index in range(5)]
    cells = run(address, "campaign", "cells", CAMPAIGN_ID, "--filter", "state = FAILED").stdout
    assert cells.count("testbed/uce") == 2
    assert "DATA_LOSS" in cells
    assert len(json.loads(run(address, "campaign", "cells", CAMPAIGN_ID, "--json").stdout)) == len(CELLS)
    assert {each.filter for each in script.seen(ListCampaignsRequest)} == {"state = FAILED"}
    assert script.seen(ListCellsRequest)[0].filter == "state = FAILED"
    shown = run(address, "campaign", "show", CAMPAIGN_ID)
    assert (shown.exit_code, "4 cells: 1 avoided, 1 not erased, 1 removed, 1 failed" in shown.stdout) == (0, True)


def test_a_campaign_is_cancelled_retried_and_deleted(address: str, script: Script) -> None:
    for command, says in (("cancel", "cancelled"), ("retry", "running"), ("delete", "deleted")):
        ended = run(address, "campaign", command, CAMPAIGN_ID)
        assert (ended.exit_code, ended.stdout) == (0, f"{says}\n")
    assert len(script.seen(RetryCampaignRequest)) == 1


@pytest.mark.parametrize(
    ("command", "before", "after", "says"),
    [
        ("cancel", "RUNNING", "CANCELLED", "cancelled"),
        ("cancel", "SUCCEEDED", "SUCCEEDED", "nothing was done: campaign c1 has already ended (succeeded)"),
        ("cancel", "CANCELLED", "CANCELLED", "nothing was done: campaign c1 has already ended (cancelled)"),
        ("retry", "SUCCEEDED", "RUNNING", "running"),
        ("retry", "CANCELLED", "RUNNING", "running"),
        ("retry", "SUCCEEDED", "SUCCEEDED", "nothing was done: no cell of campaign c1 failed or was cancelled"),
        (
            "retry",
            "RUNNING",
            "RUNNING",
            "nothing was done: campaign c1 has not ended (running); a campaign is retried after its end",
        ),
    ],
)
def test_where_nothing_is_done_it_is_said_with_the_reason(
    address: str, script: Script, command: str, before: str, after: str, says: str
) -> None:
    script.campaign.ended.state = CampaignState.Value(f"CAMPAIGN_STATE_{before}")
    answer = CampaignState.Value(f"CAMPAIGN_STATE_{after}")
    script.campaign.after_cancel = script.campaign.after_retry = answer
    ended = run(address, "campaign", command, CAMPAIGN_ID)
    assert (ended.exit_code, ended.stdout) == (0, f"{says}\n")
    in_json = json.loads(run(address, "campaign", command, CAMPAIGN_ID, "--json").stdout)
    assert in_json == {"id": CAMPAIGN_ID, "state": f"CAMPAIGN_STATE_{after}"}


def test_one_cell_is_one_cell(address: str, script: Script) -> None:
    script.campaign.ended.cells_total = script.campaign.ended.cells.failed = 1
    assert "\n1 cell: " in run(address, "campaign", "show", CAMPAIGN_ID).stdout
    watched = run(address, "campaign", "watch", CAMPAIGN_ID)
    assert "1 of 1 cell has no verdict" in watched.stderr
    assert f"`unerase campaign retry {CAMPAIGN_ID}` runs it again" in watched.stderr


def test_a_gate_is_held_against_a_campaign(address: str, script: Script, tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("excess: 0.1")
    script.campaign.gate.outcome = GateOutcome.GATE_OUTCOME_UNDECIDED
    script.campaign.gate.statement = "1 cell is undecided."
    ended = run(address, "campaign", "gate", CAMPAIGN_ID, "--gate", str(tmp_path / "gate.yaml"))
    assert (ended.exit_code, "1 cell is undecided." in ended.stdout) == (6, True)
    assert script.seen(EvaluateGateRequest)[0].gate.excess == 0.1
    assert run(address, "campaign", "gate", CAMPAIGN_ID, "--json").exit_code == 6
    (tmp_path / "gate.yaml").write_text("exces: 0.1")
    assert run(address, "campaign", "gate", CAMPAIGN_ID, "--gate", str(tmp_path / "gate.yaml")).exit_code == 2


def _worse(index: int = 0) -> CellComparison:
    """A cell that became worse, by one evaluation of two."""
    subject, concept = CELLS[index]
    cell = CellComparison(cell=index, subject=subject, concept=concept, replaced=True)
    audits = cell.audits
    audits.change, audits.statement, audits.concept = Change.CHANGE_WORSE, "It became worse.", concept
    audits.first_subject = audits.second_subject = subject
    audits.first_conclusion, audits.second_conclusion = Conclusion.CONCLUSION_REMOVED, Conclusion.CONCLUSION_AVOIDED
    worse = audits.evaluations.add(title="Textual inversion", change=Change.CHANGE_WORSE, cases=24, only_second=22)
    worse.difference.value, worse.p_holm, worse.p_campaign = 0.92, 1e-6, 4e-6
    audits.evaluations.add(title="Standard prompt", change=Change.CHANGE_SAME, cases=24, p_holm=1.0)
    return cell


def test_two_campaigns_are_compared_cell_by_cell(address: str, script: Script) -> None:
    same = CellComparison(cell=1, subject="testbed/uce", concept="heart")
    same.audits.change = Change.CHANGE_SAME
    lost = CellComparison(cell=3, subject="testbed/reference", concept="heart", problem="the cell failed")
    other = CellComparison(cell=2, subject="testbed/reference", concept="hourglass", replaced=True)
    other.audits.incomparable.add(what="cases", first="24", second="6")
    other.audits.incomparable.add(what="seed base", first="1", second="5")
    script.campaign.compared = [_worse(), same, other, lost]
    script.campaign.whole.statement = "1 of 2 cells became worse."
    script.campaign.whole.only_in_first.append("testbed/old x heart")
    shown = run(address, "campaign", "compare", "c1", "c2").stdout
    assert shown.splitlines() == [
        "1 of 2 cells became worse.",
        "testbed/uce x hourglass: worse, other weights: removed, now avoided",
        "  Textual inversion: only before in 0 of 24 cases, only now in 22, +0.92 [+0.00, +0.00], p 4e-06",
        "testbed/reference x hourglass: not compared: cases: 24 and 6; seed base: 1 and 5",
        "testbed/reference x heart: not compared: the cell failed",
        "testbed/old x heart: only in the first campaign",
    ]
    assert "testbed/uce x heart: same" in run(address, "campaign", "compare", "c1", "c2", "--all").stdout
    *cells, whole = run(address, "campaign", "compare", "c1", "c2", "--json").stdout.splitlines()
    assert [json.loads(cell).get("cell", 0) for cell in cells] == [0, 2, 3]
    assert json.loads(whole)["statement"] == "1 of 2 cells became worse."


def test_two_audits_are_compared(address: str, script: Script) -> None:
    found = script.campaign.audits_compared
    found.CopyFrom(_worse().audits)
    found.noted.add(what="numerics profile", first="a", second="b")
    figure = found.figures.add(figure="destruction", first=1.37, second=0.04)
    figure.difference.value = -1.33
    shown = run(address, "compare", "a1", "a2").stdout
    assert "testbed/uce: hourglass: worse: removed, now avoided" in shown
    assert "differs, and is only noted: numerics profile: a and b" in shown
    assert "destruction: 1.37 then 0.04, difference -1.33" in shown
    assert json.loads(run(address, "compare", "a1", "a2", "--json").stdout)["change"] == "CHANGE_WORSE"
    found.Clear()
    found.incomparable.add(what="cases", first="24", second="48")
    assert "differs: cases: 24 and 48" in run(address, "compare", "a1", "a2").stdout


def test_audits_have_labels_and_are_filtered(address: str, script: Script) -> None:
    run(address, "audit", "testbed/uce", "--concept", "hourglass", "--label", "team=safety", "--detach")
    assert dict(script.seen(CreateAuditRequest)[0].labels) == {"team": "safety"}
    run(address, "audits", "--filter", 'labels.team = "safety"', "--order-by", "end_time desc")
    listed = script.seen(ListAuditsRequest)[0]
    assert (listed.filter, listed.order_by) == ('labels.team = "safety"', "end_time desc")


def test_a_webhook_is_asked_for_by_a_url(address: str, script: Script, file: str) -> None:
    url = "https://hooks.example.com/unerase"
    run(address, "audit", "testbed/uce", "--concept", "hourglass", "--webhook", url, "--detach")
    run(address, "campaign", "create", file, "--webhook", url)
    run(address, "campaign", "create", file, "--webhook", url, "--dry-run")
    asked = [*script.seen(CreateAuditRequest), *script.seen(CreateCampaignRequest)]
    assert [each.webhook for each in asked] == [url] * 3


def test_what_the_backend_is_is_shown(address: str, script: Script) -> None:
    info = script.campaign.info = ServerInfo(version="0.1.0", contract=2, evaluations=["likelihood", "noise-based"])
    info.features.append("webhooks")
    info.webhook_hosts.append("hooks.example.com")
    info.limits["cases"] = 1024
    shown = [line.split() for line in run(address, "info").stdout.splitlines()]
    assert ["version", "0.1.0"] in shown
    assert ["evaluations", "likelihood,", "noise-based"] in shown
    assert ["webhook", "hosts", "hooks.example.com"] in shown
    assert ["limit", "of", "cases", "1,024"] in shown
    assert json.loads(run(address, "info", "--json").stdout)["limits"] == {"cases": "1024"}
