"""The programs in examples/ are run as their README says, on the backend of these tests."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import ROOT, blocks, commands
from docs.shell import Shell, shell
from support import example
from support.serving import Running
from unerase import Client

# What a program prints, besides figures that no reader of this test could check.
SAYS = {
    "audit.py": [
        "diffusion-completion/subject/0: ",
        "The concept is hidden, not removed.",
        "Standard prompt: 0 of 24 cases, control 0 of 24",
        "Diffusion completion: ",
    ],
    "custom_concept.py": [
        "example/sandglass has 128 pictures",
        "The audit makes at most 72 pictures in ",
        "The concept is hidden, not removed.",
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
    said = reader.run(f"{command} --address {backend.address}")
    for expected in SAYS[Path(shlex.split(command)[1]).name]:
        assert expected in said


def test_every_program_is_in_the_readme() -> None:
    named = [Path(shlex.split(command)[1]).name for command in _programs()]
    assert sorted(named) == sorted(SAYS) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_the_report_is_written(backend: Running, reader: Shell) -> None:
    reader.run(f"python examples/audit.py --html page.html --address {backend.address}")
    assert (reader.folder / "page.html").read_bytes().startswith(b"<!doctype html>")


def test_the_package_is_the_one_that_the_backend_has(client: Client) -> None:
    assert ROOT / "examples" / "third_party" == example.PACKAGE
    assert example.PROBE in {each.name for each in client.evaluations().evaluations}
