"""Every option and argument of every command, fed with nonsense: a clear line, exit code 2, and no traceback."""

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from support.command_tree import below, whole_command
from support.scripted_server import AUDIT_ID, Script
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase_backend.runtime import tokens

NUMBERS = ("", "x", "inf", "nan", "-inf", "-1", "1e999", "9" * 40, "0x10", "[/bold]")
WHOLE = (*NUMBERS, "1.5")
TEXTS = ("", " ", "[/bold]", "\x1b[2J", "\u202eabc", "a\nb", "\ud800", "x" * 100_000, "--", "🙂", "../..", "=", "{")
ADDRESSES = (
    "",
    "localhost",
    ":50051",
    "localhost:",
    "localhost:x",
    "localhost:0",
    "localhost:65536",
    "localhost:99999",
    "localhost:-1",
    "local host:50051",
    "::1:50051",
    "a\nb:50051",
    "localhost:" + "9" * 5000,
)
# What a command needs besides the option that is tried.
NEEDED = {
    "audit": ["x", "--concept", "y"],
    "calibrate": ["--out", "{folder}/calibration.json"],
    "watch": [AUDIT_ID],
    "report": [AUDIT_ID],
    "cancel": [AUDIT_ID],
    "delete": [AUDIT_ID],
    "compare": ["a1", "a2"],
    "campaign create": ["{folder}/campaign.yaml"],
    **{
        f"campaign {each}": ["c1"] for each in ("watch", "show", "cells", "report", "gate", "cancel", "retry", "delete")
    },
    "campaign compare": ["c1", "c2"],
    "models register": ["{folder}/models.yaml"],
    "models show": ["acme/x"],
    "models delete": ["acme/x"],
    "verdict": ["{folder}/observations.parquet"],
    "concepts create": ["{folder}/concept.yaml"],
    "concepts delete": ["mine/x"],
    "tokens create": ["ci", "--file", "{folder}/tokens.json", "--tenant", "acme", "--scope", "audit:read"],
    "tokens list": ["--file", "{folder}/tokens.json"],
    "tokens revoke": ["ci", "--file", "{folder}/tokens.json"],
    "deploy check": ["{folder}/serve.yaml"],
}
# Text that only the backend can judge: it is sent as it is, and refused there.
FREE = {
    "webhook",
    "subject",
    "concept",
    "reference",
    "control",
    "placebo",
    "battery",
    "selector",
    "judge",
    "second_judge",
} | {
    "request_id",
    "audit_id",
    "campaign_id",
    "compared_with",
    "first",
    "second",
    "filter",
    "order_by",
    "name",
    "service",
    "model",
    "models",
    "tenant",
    "scope",
    "evaluation",
}


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command by its whole name."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        subcommands = below(command)
        if subcommands:
            for each, child in subcommands.items():
                yield from walk(child, f"{name} {each}".strip())
        if not subcommands or getattr(command, "invoke_without_command", False):
            yield name, command

    yield from walk(whole_command(), "")


COMMANDS = dict(_commands())


def kind_of(command: Any, parameter: Any) -> type:
    """The type of a parameter's value, or of each where it may be repeated."""
    hint = get_type_hints(inspect.unwrap(command.callback))[parameter.name]
    while get_args(hint):
        hint = next(each for each in get_args(hint) if each is not type(None))
    return hint


PARAMETERS = [
    pytest.param(name, parameter, kind_of(command, parameter), id=f"{name}-{parameter.name}")
    for name, command in COMMANDS.items()
    for parameter in command.params
    if name and not parameter.is_eager and not getattr(parameter, "is_flag", False)
]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UNERASE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gets through to Ray was not refused; no backend is started to find that out."""

    def start(**_: object) -> None:
        raise AssertionError("a backend would start")

    monkeypatch.setattr("ray.init", start)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that the commands need, and some that are none."""
    tokens.create(tmp_path / "tokens.json", "there", "acme", ["audit:read"], 1)
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "empty").touch()
    return tmp_path


def run(arguments: list[str]) -> Result:
    """Run a command; nothing but its own ending may end it."""
    ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert "Traceback" not in ended.output
    return ended


def nonsense(parameter: Any, kind: type, folder: Path) -> tuple[str, ...]:
    """What a parameter is given that it must refuse."""
    if parameter.name == "address":
        return ADDRESSES
    if kind is Path:
        unusable = ("{folder}/missing/file", "{folder}/binary/file", "a\0b")
        return tuple(each.format(folder=folder) for each in (*unusable, "{folder}"))
    if kind is int:
        return WHOLE
    if kind is float:
        return NUMBERS
    return TEXTS


@pytest.mark.usefixtures("_nothing_starts")
@pytest.mark.parametrize(("name", "parameter", "kind"), PARAMETERS)
def test_nonsense_is_refused_with_a_clear_line(
    address: str, script: Script, folder: Path, name: str, parameter: Any, kind: type
) -> None:
    needed = [each.format(folder=folder) for each in NEEDED.get(name, [])]
    takes_address = any(each.name == "address" for each in COMMANDS[name].params)
    for value in nonsense(parameter, kind, folder):
        if parameter.param_type_name == "argument":
            # Arguments come first in what is needed.
            arguments = [*name.split(), *needed[1:], *(["--address", address] if takes_address else []), "--", value]
        else:
            option = parameter.opts[0]
            arguments = [*name.split(), *needed]
            if option in arguments:
                at = arguments.index(option)
                del arguments[at : at + 2]
            arguments += ["--address", address] if takes_address and option != "--address" else []
            arguments.append(f"{option}={value}")
        if value in _fine(name, parameter, folder):
            continue
        ended = run(arguments)
        said = ended.stderr
        if parameter.name in FREE and ended.exit_code != ExitCode.BAD_INPUT:
            # Sent to the backend; the scripted one refuses nothing.
            assert ended.exit_code in (0, ExitCode.UNEXPECTED, ExitCode.AUDIT_FAILED), (arguments, ended.output)
            continue
        assert ended.exit_code == ExitCode.BAD_INPUT, (arguments, ended.output)
        assert said.strip(), arguments
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", said), arguments
        assert not script.uploads
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]


def _fine(name: str, parameter: Any, folder: Path) -> tuple[str, ...]:
    """What is no nonsense here, or only the backend's to refuse."""
    return {
        # No file yet means no token yet, and a folder that is not there is made.
        "tokens list file": (f"{folder}/missing/file",),
        "serve data_dir": (f"{folder}/missing/file", str(folder)),
        "audit guidance_scale": ("-1", "9" * 40),
        # A folder may be called almost anything; its test is one of its own.
        "serve artifacts": TEXTS,
        "serve model_roots": ("../..",),
        "serve trace_endpoint": ("",),
    }.get(f"{name} {parameter.name}", ())


@pytest.mark.parametrize("place", ["nosuch://bucket/folder", "://", "[://"])
@pytest.mark.usefixtures("_nothing_starts")
def test_a_store_that_there_is_not_is_refused_before_anything_starts(place: str) -> None:
    ended = run(["serve", "--artifacts", place])
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "artifacts: " in ended.stderr


@pytest.mark.parametrize("option", ["--html", "--json-file", "--parquet"])
@pytest.mark.parametrize(
    "place", ["{folder}", "{folder}/missing/file", "{folder}/empty/file", "/proc/unerase.html", "{folder}/loop"]
)
def test_an_output_that_cannot_be_written_is_refused_before_the_audit(
    address: str, script: Script, folder: Path, option: str, place: str
) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    ended = run(["audit", "x", "--concept", "y", option, place.format(folder=folder), "--address", address])
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert option in ended.stderr
    assert not script.requests
    (folder / "loop").unlink()
    assert sorted(path.name for path in folder.iterdir()) == [".tokens.json.lock", "binary", "empty", "tokens.json"]


@pytest.mark.parametrize(
    "text",
    [
        "a={",
        "a=[1]",
        'a={"b": NaN}',
        'a={"b": Infinity}',
        'a={"b": 1' + "0" * 400 + "}",
        'a={"b": 1' + "0" * 5000 + "}",
        'a={"b": ' + "[" * 100_000 + "]" * 100_000 + "}",
        'a={"b": ' + "[" * 200 + "]" * 200 + "}",
        '={"b": 1}',
        'a={"\\ud800": 1}',
    ],
    ids=range(10),
)
def test_parameters_that_are_none_are_refused(address: str, script: Script, text: str) -> None:
    ended = run(["audit", "x", "--concept", "y", "--evaluation", text, "--address", address])
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert not script.requests


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "", "x"])
def test_a_tolerance_is_a_number(address: str, script: Script, value: str) -> None:
    ended = run(["audit", "x", "--concept", "y", "--tolerance", f"excess={value}", "--address", address])
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "must be a number" in ended.stderr
    assert not script.requests


@pytest.mark.parametrize("command", ["verdict", "concepts create", "deploy check", "tokens list --file"])
@pytest.mark.parametrize("file", ["binary", "empty", "missing", "."])
def test_a_file_that_is_none_is_refused(folder: Path, command: str, file: str) -> None:
    if (command, file) == ("tokens list --file", "missing"):
        # No file yet means no token yet.
        assert run([*command.split(), str(folder / file)]).exit_code == 0
        return
    ended = run([*command.split(), str(folder / file)])
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert ended.stderr.strip()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:65535", "unix:/nowhere/socket"])
def test_addresses_that_are_some_are_tried(address: str) -> None:
    assert run(["health", "--address", address, "--timeout", "1"]).exit_code == ExitCode.UNREACHABLE


def test_every_command_is_here() -> None:
    assert isinstance(app, typer.Typer)
    assert {"audit", "serve", "tokens create", "concepts", "concepts create"} <= COMMANDS.keys()
    assert len(PARAMETERS) > 60
