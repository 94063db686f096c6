"""The command: in a process of its own, and in this one against the scripted server."""

import io
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from rich.console import Console
from typer.testing import CliRunner, Result

from support.scripted_server import AUDIT_ID, EVENTS, Script, ended_audit, failing
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase._display import show_verdict
from unerase.v1.audits_pb2 import AuditState, CreateAuditRequest, Tolerances
from unerase.v1.models_pb2 import DeleteConceptRequest
from unerase.v1.types_pb2 import (
    ControlKind,
    DecidedBy,
)

AUDIT = ("audit", "testbed/uce", "--concept", "hourglass")


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "200"})


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unerase", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_names_every_command() -> None:
    shown = command("--help")
    assert shown.returncode == 0
    for name in (
        "serve",
        "audit",
        "power",
        "watch",
        "report",
        "models",
        "backbones",
        "concepts",
        "evaluations",
        "presets",
        "audits",
        "cancel",
        "delete",
        "campaign",
        "compare",
    ):
        assert name in shown.stdout


@pytest.mark.parametrize("arguments", [["models"], ["audit", "testbed/uce", "--concept", "hourglass"]])
def test_without_a_backend_it_says_so_and_exits_with_4(arguments: list[str]) -> None:
    ended = command(*arguments, "--address", "127.0.0.1:1")
    assert ended.returncode == 4
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip()
    assert "start one with `unerase serve`" in " ".join(ended.stderr.split())


def test_health_is_an_exit_code_with_a_word(address: str) -> None:
    assert (run(address, "health").exit_code, run(address, "health").output) == (0, "serving\n")
    draining = run(address, "health", "draining")
    assert (draining.exit_code, draining.output) == (1, "draining is not serving\n")
    assert run(address, "health", "nowhere").exit_code == ExitCode.BAD_INPUT
    assert run("127.0.0.1:1", "health", "--timeout", "1").exit_code == 4


def test_the_client_imports_nothing_of_the_backend() -> None:
    modules = ("torch", "ray", "pyarrow", "unerase_backend")
    code = f"import sys, unerase, unerase._cli; sys.exit(any(name in sys.modules for name in {modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_an_audit_prints_its_verdict(address: str, tmp_path: Path) -> None:
    page, content = tmp_path / "audit.html", tmp_path / "audit.json"
    ended = run(address, *AUDIT, "--html", str(page), "--json-file", str(content))
    assert ended.exit_code == 0, ended.output
    assert "hourglass is avoided, not removed." in ended.stdout
    assert "Textual inversion recovers it in 24 of 24 cases." in ended.stdout
    assert "24/24" in ended.stdout
    assert "recovers" in ended.stdout
    # The reference had no pull: there is no figure, which is not the figure 0.
    assert "destruction 0.04" in ended.stdout
    assert "lost pull -" in ended.stdout
    assert page.read_bytes().startswith(b"<!doctype html>")
    assert json.loads(content.read_bytes())


def test_what_is_written_to_a_pipe_is_not_filled_to_a_width(address: str) -> None:
    arguments = ["audit", "testbed/uce", "--concept", "hourglass", "--address", address]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": None}).stdout
    assert "  - " in shown
    assert max(map(len, shown.splitlines())) < 1000


def test_a_verdict_is_printed_with_its_controls() -> None:
    """Without a control there is a bound, and neither a lower one nor a p."""
    ended = ended_audit()
    verdict = ended.verdict
    verdict.control_statement = "No model that never learned the concept takes part."
    verdict.evaluations[0].control_kind = ControlKind.CONTROL_KIND_PLACEBO
    verdict.likelihood.concept_loss.value = 0.05
    bare = verdict.evaluations.add(title="Diffusion completion", control_kind=ControlKind.CONTROL_KIND_NONE)
    bare.subject.cases, bare.subject.excluded, bare.excess.bounds.upper = 20, 4, 0.139
    console = Console(width=160, file=io.StringIO(), record=True)
    show_verdict(console, ended)
    shown = console.export_text()
    assert "No model that never learned the concept takes part." in shown
    assert re.search(r"Textual inversion +24/24 +- +placebo 0/24 +\+1.00", shown)
    assert re.search(r"Diffusion completion +0/20 \(4 excluded\) +- +- +at most \+0.14 +- ", shown)
    assert "loss on the concept's pictures in all 0.05" in shown


CONCEPT = """
name: mine/hourglass
kind: object
names: [hourglass, sandglass]
prompts: ["a picture of a {concept}"]
labels: {a/judge: [hourglass], a/clip: [a picture of a hourglass]}
control: never
placebo: false
pictures: [pictures, more.png]
near_misses: near-misses
tile: 32
"""


@pytest.fixture
def concept_file(tmp_path: Path) -> Path:
    for name in (
        "pictures/b.png",
        "pictures/a.png",
        "pictures/notes.txt",
        "pictures/.hidden",
        "more.png",
        "near-misses/c.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    file = tmp_path / "concept.yaml"
    file.write_text(CONCEPT)
    return file


def test_a_concept_is_created_from_a_file_and_deleted(address: str, script: Script, concept_file: Path) -> None:
    ended = run(address, "concepts", "create", str(concept_file), "--request-id", "mine")
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == "mine/hourglass: 3 pictures, 1 near miss\n"
    # What a folder holds beside pictures is named; hidden files are nobody's pictures.
    assert "pictures/notes.txt: not taken: only files that end in .png, .jpg, .jpeg, .webp are" in ended.stderr
    assert ".hidden" not in ended.stderr
    ((first, *pictures),) = script.uploads
    assert first.concept.request_id == "mine"
    assert json_format.MessageToDict(first.concept.concept, preserving_proto_field_name=True) == {
        "name": "mine/hourglass",
        "kind": "CONCEPT_KIND_OBJECT",
        "names": ["hourglass", "sandglass"],
        "prompts": ["a picture of a {concept}"],
        "labels": [
            {"judge": "a/judge", "labels": ["hourglass"]},
            {"judge": "a/clip", "labels": ["a picture of a hourglass"]},
        ],
        "control": "never",
    }
    sent = [(each.picture.chunk.decode(), each.picture.near_miss, each.picture.tile) for each in pictures]
    assert sent == [
        ("pictures/a.png", False, 32),
        ("pictures/b.png", False, 32),
        ("more.png", False, 32),
        ("near-misses/c.png", True, 32),
    ]
    assert json.loads(run(address, "concepts", "create", str(concept_file), "--json").stdout)["custom"]
    assert run(address, "concepts", "delete", "mine/hourglass").exit_code == 0
    (deleted,) = script.seen(DeleteConceptRequest)
    assert deleted.name == "mine/hourglass"


def test_a_picture_that_the_backend_refuses_is_named_by_its_file(
    address: str, script: Script, concept_file: Path
) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="pictures[1]", description="the picture is in CMYK")
    bad.field_violations.add(field="pictures[3].tiles[7]", description="is the same picture as pictures[0].tiles[0]")
    script.failures["CreateConcept"] = [failing(grpc.StatusCode.INVALID_ARGUMENT, "bad", bad)]
    ended = run(address, "concepts", "create", str(concept_file))
    assert ended.exit_code == ExitCode.BAD_INPUT
    folder = concept_file.parent
    assert f"{folder}/pictures/b.png: the picture is in CMYK" in ended.stderr
    same = f"{folder}/near-misses/c.png.tiles[7]: is the same picture as {folder}/pictures/a.png.tiles[0]"
    assert same in ended.stderr


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("kind: object", "kind: animal", "kind: must be one of object, colour, style"),
        ("names: [hourglass, sandglass]", "names: hourglass", "names: must be a list"),
        ("name: mine/hourglass", "name: [a]", "name: must be text"),
        ("placebo: false", "placebo: maybe", "placebo: must be true or false"),
        ("labels: {", "labels: [a]\nignored: {", "there is no key 'ignored'"),
        ("tile: 32", "tile: -1", "tile: must be the side"),
        ("tile: 32", "tile: true", "tile: must be the side"),
        ("near_misses: near-misses", "near_misses: {a: b}", "near_misses: must be a path"),
        ("near_misses: near-misses", "near_misses: nowhere.png", "No such file"),
        ("near_misses: near-misses", "near_misses: .", "near_misses: the folder . has no file that ends in .png"),
        ("names: [", "names: [[", "not valid YAML"),
        (CONCEPT, "- a list", "must be a mapping with the keys name, kind"),
        (CONCEPT, "!!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_a_bad_concept_file_is_refused_here(
    address: str, script: Script, concept_file: Path, before: str, after: str, problem: str
) -> None:
    (concept_file.parent / "more.png").rename(concept_file.parent / "pictures" / "more.png")
    text = CONCEPT.replace("[pictures, more.png]", "pictures")
    concept_file.write_text(text.replace(before, after) if before != CONCEPT else after)
    ended = run(address, "concepts", "create", str(concept_file))
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert problem in ended.stderr.replace("\n", " ")
    assert not script.uploads


def test_an_option_in_the_wrong_place_is_not_swallowed(address: str, script: Script) -> None:
    ended = CliRunner().invoke(app, ["concepts", "--address", address, "delete", "mine/hourglass"])
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "put options after delete" in ended.stderr
    assert not script.requests


def test_help_names_every_tolerance() -> None:
    # However the table's lines are broken.
    shown = re.sub(r"[\s│]", "", command("audit", "--help").stdout)
    assert all(field.name in shown for field in Tolerances.DESCRIPTOR.fields)


@pytest.mark.parametrize("text", ["excess", "excess=much", "patience=1", ""])
def test_a_tolerance_that_is_none_is_refused(address: str, script: Script, text: str) -> None:
    ended = run(address, *AUDIT, "--tolerance", text)
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert f"--tolerance {text}: " in ended.stderr
    assert not script.seen(CreateAuditRequest)


def test_an_audit_asks_for_what_was_given(address: str, script: Script) -> None:
    ended = run(
        address,
        *AUDIT,
        *("--battery", "", "--evaluation", "standard-prompt", "--evaluation", 'noise-based={"etas": [1.0, 1.5]}'),
        *("--allow-incomplete", "--cases", "6", "--steps", "10", "--seed", "7", "--request-id", "mine"),
        *("--placebo", "thing", "--placebo", "item", "--control-kind", "concept-free", "--decided-by", "judge"),
        "--sequential",
        *("--guidance-scale", "2.5", "--tolerance", "excess=0.2", "--tolerance", "destruction=0.05"),
        *("--selector", "a/clip", "--judge", "a/judge", "--second-judge", "another/judge"),
    )
    assert ended.exit_code == 0, ended.output
    (request,) = script.seen(CreateAuditRequest)
    assert request.request_id == "mine"
    assert (request.spec.cases, request.spec.steps, request.spec.seed_base) == (6, 10, 7)
    assert request.spec.guidance_scale == 2.5
    assert (request.spec.placebos, request.spec.sequential) == (["thing", "item"], True)
    assert request.spec.control_kind == ControlKind.CONTROL_KIND_CONCEPT_FREE
    assert request.spec.decided_by == DecidedBy.DECIDED_BY_JUDGE
    assert request.spec.tolerances == Tolerances(excess=0.2, destruction=0.05)
    judges = (request.spec.selector, request.spec.judge, request.spec.second_judge)
    assert judges == ("a/clip", "a/judge", "another/judge")
    first, second = request.spec.battery.evaluations
    assert (request.spec.battery.preset, request.spec.battery.allow_incomplete) == ("", True)
    assert (first.name, second.name, list(second.parameters["etas"])) == ("standard-prompt", "noise-based", [1.0, 1.5])


@pytest.mark.parametrize("evaluation", ["noise-based={", "noise-based=[1]"])
def test_bad_parameters_are_refused_here(address: str, script: Script, evaluation: str) -> None:
    ended = run(address, *AUDIT, "--evaluation", evaluation)
    assert ended.exit_code == 2
    assert "noise-based" in ended.stderr
    assert not script.seen(CreateAuditRequest)


@pytest.mark.parametrize(
    "arguments",
    [
        AUDIT,
        ("report", AUDIT_ID),
        ("audits",),
        ("models",),
        ("backbones",),
        ("concepts",),
        ("evaluations",),
        ("presets",),
        ("cancel", AUDIT_ID),
    ],
)
def test_json_is_all_there_is_on_stdout(address: str, arguments: tuple[str, ...]) -> None:
    ended = run(address, *arguments, "--json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)
    plain = run(address, *arguments)
    assert plain.exit_code == 0
    assert plain.stdout.strip()


def test_watch_prints_every_event(address: str) -> None:
    ended = run(address, "watch", AUDIT_ID, "--after", "2", "--json")
    assert [int(json.loads(line)["sequence"]) for line in ended.stdout.splitlines()] == list(range(3, EVENTS + 1))
    assert "hourglass is avoided" in run(address, "watch", AUDIT_ID).stdout


def test_bad_fields_are_named(address: str, script: Script) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="spec.cases", description="must be at most 512")
    details = error_details_pb2.BadRequest(field_violations=[violation])
    script.failures["CreateAudit"] = [failing(grpc.StatusCode.INVALID_ARGUMENT, "bad", details)]
    ended = run(address, *AUDIT, "--cases", "513")
    assert ended.exit_code == 2
    assert ended.stderr.strip().endswith("spec.cases: must be at most 512")
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("code", "exit_code", "advice"),
    [
        (grpc.StatusCode.NOT_FOUND, 2, []),
        (grpc.StatusCode.FAILED_PRECONDITION, 2, []),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 2, ["Try again later."]),
        (
            grpc.StatusCode.UNAUTHENTICATED,
            2,
            ["Give a token: UNERASE_TOKEN, or UNERASE_TOKEN_FILE with the name of its file."],
        ),
        (grpc.StatusCode.INTERNAL, 1, ["Tell whoever runs the backend; its log has more."]),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 4, ["The backend was too slow to answer; try again."]),
    ],
)
def test_exit_codes(address: str, script: Script, code: grpc.StatusCode, exit_code: int, advice: list[str]) -> None:
    script.failures["GetReport"] = [failing(code, "the reason")]
    ended = run(address, "report", AUDIT_ID, "--json")
    assert ended.exit_code == exit_code
    assert ended.stderr.splitlines() == ["the reason", *advice]


def test_an_audit_that_failed_exits_with_3(address: str, script: Script) -> None:
    script.state = AuditState.AUDIT_STATE_FAILED
    ended = run(address, *AUDIT)
    assert ended.exit_code == 3
    assert "an artefact is damaged" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["serve", "--help"],
        ["verdict", "observations.parquet"],
        ["calibrate", "--out", "calibration.json"],
        ["power"],
    ],
)
def test_without_the_backend_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("unerase._commands.backend.entry_points", lambda **_: ())
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert "unerase[server]" in ended.stderr


def test_a_backend_that_is_installed_in_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="verdict", group="unerase.server", value="no_such_module:verdict")
    monkeypatch.setattr("unerase._commands.backend.entry_points", lambda **_: (entry,))
    ended = CliRunner().invoke(app, ["verdict", "observations.parquet"])
    assert ended.exit_code == 2
    assert "no_such_module is missing" in ended.stderr
    assert "unerase[server]" in ended.stderr


def test_observations_are_written_beside_the_reports(address: str, tmp_path: Path) -> None:
    for at, arguments in enumerate((AUDIT, ("report", AUDIT_ID))):
        file = tmp_path / f"{at}.parquet"
        ended = run(address, *arguments, "--parquet", str(file))
        assert ended.exit_code == 0, ended.output
        assert file.read_bytes() == b"PAR1"
