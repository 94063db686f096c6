"""The programs in examples/ are run as their README says, on the backend of these tests."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import ROOT, blocks, commands
from docs.shell import Shell, shell
from support.serving import Running

# What a program prints, besides figures that no reader of this test could check.
SAYS = {
    "audit.py": [
        "diffusion-completion/subject/0: ",
        "The concept is hidden, not removed",
        "Standard prompt: 0 of 24 cases, control 0 of 24",
        "Diffusion completion: ",
    ],
    "custom_concept.py": [
        "example/sandglass has 64 pictures",
        "The audit makes at most 72 pictures in ",
        "The concept is hidden, not removed",
        "Destruction: ",
    ],
    "third_party_probe.py": [
        "doubled-guidance: One picture a case at a multiple of the guidance scale.",
        "doubled-guidance: does not recover; cases of 24 that show the concept: subject 0, reference 24, control 0",
    ],
}


def _programs() -> list[str]:
    """Return the command lines of the README that run a program."""
    found = [command for block in blocks("examples/README.md") for command in commands(block.text)]
    return [command for command in found if command.startswith("python examples/")]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a folder that has what a clone has."""
    for name in ("examples", "services"):
        (tmp_path / name).symlink_to(ROOT / name)
    with shell(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("command", _programs())
def test_a_program_runs(command: str, backend: Running, reader: Shell) -> None:
    _, program, *arguments = shlex.split(command)
    said = reader.run(f"{command} --address {backend.address}")
    for expected in SAYS[Path(program).name]:
        assert expected in said
    if "--html" in arguments:
        assert (reader.folder / arguments[-1]).read_bytes().startswith(b"<!doctype html>")


def test_every_program_is_in_the_readme() -> None:
    named = [Path(shlex.split(command)[1]).name for command in _programs()]
    assert sorted(named) == sorted(SAYS) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))
