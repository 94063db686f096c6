"""A bound, a default or a form is written in one place: elsewhere it is imported."""

import ast
from collections import defaultdict
from pathlib import Path

import unerase
import unerase_backend

PACKAGES = [Path(each.__file__ or "").parent for each in (unerase, unerase_backend)]
# Generated, and the testbed's recipes of training, each with figures of its own.
APART = ("v1", "internal", "testbed")


def _constants(file: Path) -> dict[str, str]:
    """The constants of a module, by name without an underscore before it, as they are written."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id.lstrip("_")
            # What has the module's own name is another value in each.
            if name.isupper() and "__name__" not in (value := ast.unparse(node.value)):
                found[name] = value
    return found


def test_a_constant_is_written_once() -> None:
    places = defaultdict(list)
    for package in PACKAGES:
        for file in package.rglob("*.py"):
            if not set(file.relative_to(package).parts) & set(APART):
                for name, value in _constants(file).items():
                    places[name, value].append(str(file.relative_to(package)))
    assert len(places) > 100
    assert {constant: files for constant, files in places.items() if len(files) > 1} == {}
