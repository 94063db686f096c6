"""Whatever a name, a message or a prompt holds: the terminal shows it, and obeys none of it."""

import unicodedata
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.scripted_campaigns import CampaignScript
from support.scripted_server import AUDIT_ID, Script, failing
from unerase import CellComparison, Change, GateOutcome
from unerase._cli import app
from unerase._commands.output import PlainConsole
from unerase._visible import isolated, visible
from unerase.v1.audits_pb2 import Audit, AuditState, EvaluationCost
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, EvaluationDescription

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
ISOLATES = "\u2068\u2069"
# What people would use against a terminal, rich or a reader, and anything else.
NASTY = st.sampled_from(
    [
        *("[/bold]", "[bold]", "[", "\\[", "[link=file:///]", ":smile:", "{task.fields}", "%s"),
        *("\x1b[2J", "\x1b]0;t\x07", "\x9b31m", "\x7f", "\r", "\n", "\t", "\x00"),
        *("\u202e", "\u2066", "\u2069", "\u200b", "\u2028", "\u061c", "\ufeff", "\U000e0041", "\u05d0"),
        *("e\u0301", "\U0001f642", "\u3042"),
    ]
)
TEXT = st.lists(st.one_of(NASTY, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=5).map(
    "".join
)
AUDIT = ("audit", "x", "--concept", "y")


def is_safe(output: str) -> bool:
    """Nothing hidden but the ends of lines, and the isolates that we put around what is written right to left."""
    return not any(unicodedata.category(each) in HIDDEN for each in output if each not in "\n" + ISOLATES)


@given(TEXT)
def test_visible_text_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(each) in HIDDEN for each in shown)
    assert visible(shown) == shown
    if not any(unicodedata.category(each) in HIDDEN for each in text):
        assert shown == text


@given(TEXT)
def test_what_is_written_right_to_left_keeps_to_itself(text: str) -> None:
    shown = isolated(text)
    if any(unicodedata.bidirectional(each) in ("R", "AL", "AN") for each in visible(text)):
        assert (shown[0], shown[-1], shown[1:-1]) == ("\u2068", "\u2069", visible(text))
    else:
        assert shown == visible(text)


def test_escapes_are_shown_as_they_are_written() -> None:
    assert visible("a\x1b[2J\u202eb\n\x7f\U000e0041\ud800") == "a\\x1b[2J\\u202eb\\n\\x7f\\U000e0041\\ud800"


def poisoned(script: Script, text: str) -> None:
    """Put a text wherever the backend answers with one."""
    script.models = [Model(name=text, base=text, method=text, erased=[text, text], digest=text)]
    script.concepts = [Concept(name=text, names=[text, text], control=text, custom=True)]
    script.evaluations = [EvaluationDescription(name=text, summary=text)]
    script.evaluations[0].parameters.add(name=text)
    script.audits = [Audit(id=text, error_message=text)]
    script.audits[0].spec.subject = script.audits[0].spec.concept = text
    script.unit = text
    script.cost.evaluations.append(EvaluationCost(evaluation=text))
    ended = script.ended
    ended.id, ended.error_message = text, text
    ended.spec.subject = ended.spec.concept = text
    verdict = ended.verdict
    verdict.statement = verdict.summary = verdict.control_statement = text
    verdict.evidence.append(text)
    verdict.assumptions.append(text)
    verdict.evaluations[0].title = verdict.evaluations[0].name = text

    poisoned_campaign(script.campaign, text)


def poisoned_campaign(said: CampaignScript, text: str) -> None:
    """The same in what it says of campaigns."""
    for cell in said.cells:
        cell.subject = cell.concept = cell.audit = cell.error_reason = cell.error_message = text
    ended = said.ended
    ended.id = ended.labels["team"] = ended.delayed.message = text
    said.campaigns = [ended]
    for gate in (ended.gate_result, said.gate):
        gate.outcome, gate.statement = GateOutcome.GATE_OUTCOME_PASS, text
        gate.findings.add(subject=text, concept=text, clause=text, evaluation=text, description=text)
    found = said.audits_compared
    found.statement = found.concept = found.first_subject = text
    found.incomparable.add(what=text, first=text, second=text)
    found.evaluations.add(title=text).incomparable.add(what=text)
    found.figures.add(figure=text)
    found.only_in_first.append(text)
    said.compared = [CellComparison(subject=text, concept=text, problem=each) for each in ("", text)]
    said.compared[0].replaced = True
    said.compared[0].audits.evaluations.add(title=text, change=Change.CHANGE_WORSE)
    said.whole.statement = text
    said.whole.only_in_second.append(text)


COMMANDS = [
    ("campaign", "list"),
    ("campaign", "show", "c1"),
    ("campaign", "cells", "c1"),
    ("campaign", "watch", "c1"),
    ("campaign", "gate", "c1"),
    ("campaign", "compare", "c1", "c2"),
    ("compare", "a1", "a2"),
    ("models", "show", "m1"),
    ("models",),
    ("concepts",),
    ("evaluations",),
    ("audits",),
    ("report", AUDIT_ID),
    ("watch", AUDIT_ID),
    (*AUDIT, "--dry-run"),
    AUDIT,
]


@given(text=TEXT, width=st.sampled_from(["20", "80", "400"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: " ".join(each[:2] + each[3:]))
def test_no_command_obeys_what_it_shows(
    address: str, script: Script, command: tuple[str, ...], text: str, width: str
) -> None:
    script.__init__()
    poisoned(script, text)
    for form in ((), ("--json",)):
        ended = CliRunner().invoke(app, [*command, *form, "--address", address], env={"COLUMNS": width})
        assert ended.exit_code == 0, ended.output
        assert is_safe(ended.stdout), ended.stdout
        assert is_safe(ended.stderr), ended.stderr


@given(text=TEXT)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_error_obeys_what_it_says(address: str, script: Script, text: str) -> None:
    script.__init__()
    # gRPC gives a status of more than some kilobytes as another one.
    script.failures["ListAudits"] = [failing(grpc.StatusCode.INVALID_ARGUMENT, text, reason="INVALID_REQUEST")]
    script.state = AuditState.AUDIT_STATE_FAILED
    poisoned(script, text)
    for command, code in ((("audits",), 2), (AUDIT, 3), (("watch", AUDIT_ID), 3)):
        ended = CliRunner().invoke(app, [*command, "--address", address], env={"COLUMNS": "40"})
        assert ended.exit_code == code, ended.output
        assert is_safe(ended.output), ended.output


def test_an_event_of_another_version_is_a_line(address: str, script: Script) -> None:
    """Enum values that this command does not know are shown as numbers."""
    script.audits = [Audit(id="new", state=77)]  # type: ignore[arg-type]
    script.ended.verdict.conclusion = 78  # type: ignore[assignment]
    script.ended.verdict.evaluations[0].outcome = 79  # type: ignore[assignment]
    assert "77" in CliRunner().invoke(app, ["audits", "--address", address]).stdout
    shown = CliRunner().invoke(app, ["report", AUDIT_ID, "--address", address], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "is 78" in shown.stdout
    assert "79" in shown.stdout


def test_the_name_of_a_file_is_shown_as_it_is(address: str, tmp_path: Path) -> None:
    name = str(tmp_path / "a\x1b[2J\u202e[bold].html")
    ended = CliRunner().invoke(app, ["report", AUDIT_ID, "--html", name, "--address", address])
    assert ended.exit_code == 0
    assert "a\\x1b[2J\\u202e[bold].html" in ended.stderr
    assert is_safe(ended.output)


def test_a_word_that_is_markup_is_a_word(address: str, script: Script) -> None:
    """It once ended `unerase concepts` for everybody who could see it."""
    script.concepts = [Concept(name="mine/x", names=["[/bold]", "[red]word[/red]"])]
    ended = CliRunner().invoke(app, ["concepts", "--address", address], env={"COLUMNS": "200"})
    assert ended.exit_code == 0
    assert "[/bold], [red]word[/red]" in ended.stdout


def test_a_violation_without_a_field_is_one_line(address: str, script: Script) -> None:
    """Nobody writes lines of his own among those of the command."""
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(description="one\nThe audit has succeeded.")
    script.failures["CancelAudit"] = [failing(grpc.StatusCode.INVALID_ARGUMENT, "no", bad)]
    ended = CliRunner().invoke(app, ["cancel", AUDIT_ID, "--address", address])
    assert ended.stderr.splitlines() == ["one\\nThe audit has succeeded."]


def test_a_console_is_as_wide_as_the_variable_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console = PlainConsole()
    for columns in (200, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert console.width == columns
    monkeypatch.delenv("COLUMNS")
    # A pipe has no width.
    assert console.width > 200
