"""Every reason that the backend can give is met by an exit code, by what to do, and by a row in docs/client.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from typer.testing import CliRunner

from support.scripted_server import Script, failing
from unerase._cli import app
from unerase._commands.failing import EXIT_CODES, ExitCode, lines_of
from unerase._errors import UneraseError
from unerase_backend.runtime import errors, pictures

ROOT = Path(__file__).parents[2]
SOURCES = [path for path in (ROOT / "services" / "unerase_backend").rglob("*.py") if "testbed" not in path.parts]
KINDS = {
    name: kind
    for module in (errors, pictures)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, errors.UneraseError)
}
REASON = re.compile(r"[A-Z]+(_[A-Z]+)+")


def _constants() -> dict[str, str]:
    """Names that hold a reason, over all modules."""
    return {
        target.id: node.value.value
        for path in SOURCES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name) and REASON.fullmatch(node.value.value)
    }


CONSTANTS = _constants()


def _values(node: ast.expr, module: ast.Module) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(value)):
            yield value
        case ast.IfExp(body=body, orelse=other):
            yield from _values(body, module)
            yield from _values(other, module)
        case ast.JoinedStr():
            # A kind of the catalogue's, which is one of three.
            assert ast.unparse(node) == "f'{kind.upper()}_NOT_FOUND'", ast.unparse(node)
            yield from ("MODEL_NOT_FOUND", "CONCEPT_NOT_FOUND", "JUDGE_NOT_FOUND")
        case ast.Name(id=name) if name in CONSTANTS:
            yield CONSTANTS[name]
        case _:
            # Handed on by a function: what the module itself calls reasons.
            yield from (
                each.value
                for each in ast.walk(module)
                if isinstance(each, ast.Constant) and isinstance(each.value, str) and REASON.fullmatch(each.value)
            )


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def reasons() -> list[tuple[grpc.StatusCode, str]]:
    """Every pair of code and reason that some error of the backend is made with."""
    found = {(kind.code, kind.reason) for kind in KINDS.values()}
    for path in SOURCES:
        module = ast.parse(path.read_text())
        for node in ast.walk(module):
            if not isinstance(node, ast.Call):
                continue
            # One of two classes of the same code, chosen a line before.
            name = "UnavailableError" if ast.unparse(node.func) == "kind" else ast.unparse(node.func).split(".")[-1]
            if name in KINDS:
                for keyword in node.keywords:
                    if keyword.arg == "reason" and (ast.unparse(node.func) in KINDS or _is_text(keyword.value)):
                        found |= {(KINDS[name].code, value) for value in _values(keyword.value, module)}
    return sorted(found, key=lambda pair: (pair[0].value[0], pair[1]))


REASONS = reasons()


def test_the_reasons_are_found() -> None:
    known = {reason for _, reason in REASONS}
    assert {"QUOTA_AUDITS", "STORAGE_FULL", "CALLS_FULL", "TOKEN_EXPIRED", "MODEL_NOT_FOUND", "ROOM_BUSY"} <= known
    assert "ROOM_UNAVAILABLE" in known
    assert len(REASONS) > 60


def test_every_code_has_an_exit_code() -> None:
    assert EXIT_CODES.keys() == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize(("code", "reason"), REASONS, ids=lambda each: getattr(each, "name", each))
def test_a_reason_is_said_with_what_to_do(address: str, script: Script, code: grpc.StatusCode, reason: str) -> None:
    later = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=90))
    details = [later] if code == grpc.StatusCode.RESOURCE_EXHAUSTED else []
    script.failures["ListEvaluations"] = [failing(code, "what is wrong", *details, reason=reason)] * 9
    ended = CliRunner().invoke(app, ["evaluations", "--address", address], env={"COLUMNS": "400"})
    assert ended.exit_code == EXIT_CODES[code]
    assert ended.exit_code != 0
    first, *advice = ended.stderr.splitlines()
    assert first == "what is wrong"
    # What is wrong with a request says itself what to change; everything else needs a word of what to do.
    if code not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS) and EXIT_CODES[code] != 2:
        assert advice
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert ended.exit_code == ExitCode.BAD_INPUT
        assert "The backend asks to wait 90 s." in advice[0]


@pytest.mark.parametrize(("code", "reason"), REASONS, ids=lambda each: getattr(each, "name", each))
def test_a_reason_is_in_the_documentation(code: grpc.StatusCode, reason: str) -> None:
    rows = (ROOT / "docs" / "client.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(f"| `{code.name}` ")]
    *_, reasons_there, exit_code, _, _ = row.split("|")
    assert f"`{reason}`" in reasons_there
    assert int(exit_code) == EXIT_CODES[code]


def test_a_quota_says_what_to_do() -> None:
    full = UneraseError(grpc.StatusCode.RESOURCE_EXHAUSTED, "used up", reason="QUOTA_PICTURES", retry_after=7200)
    assert lines_of(full) == [
        "used up",
        "`unerase audit ... --dry-run` says how many pictures an audit takes. The backend asks to wait 2.0 h.",
    ]
