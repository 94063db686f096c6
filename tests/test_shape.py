"""The shape of the source: no module and no function is too long, each evaluation has tests of its name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.backend import own_evaluations

ROOT = Path(__file__).parents[1]
FOLDERS = ("services", "clients", "bench", "tools", "tests", "examples", "deploy")
# Written by protoc.
GENERATED = ("clients/python/unerase/v1", "clients/python/unerase/internal")
MODULE_LINES, FUNCTION_LINES = 400, 60


def modules() -> list[str]:
    """The modules that people write, from the root."""
    paths = (path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in paths if not path.startswith(GENERATED))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, from `def` to its last."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_no_module_is_too_long() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in modules()}
    too_long = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MODULE_LINES]
    assert not too_long, "\n".join([f"divide by subject what has more than {MODULE_LINES} lines:", *too_long])
    assert len(lengths) > 300


def test_no_function_is_too_long() -> None:
    too_long = [
        f"{path}::{function.name}: {length(function)} lines"
        for path in modules()
        for function in functions(ast.parse((ROOT / path).read_text()))
        if length(function) > FUNCTION_LINES
    ]
    assert not too_long, "\n".join([f"divide what has more than {FUNCTION_LINES} lines:", *too_long])


MODULES = {name: evaluation.run.__module__ for name, evaluation in own_evaluations().items()}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_an_evaluation_has_tests_of_its_name(name: str) -> None:
    """In the folder of its room, as `probing/probes/noise_based.py` in `tests/probing/test_noise_based.py`."""
    _, room, _, module = MODULES[name].split(".")
    assert (ROOT / "tests" / room / f"test_{module}.py").is_file()
