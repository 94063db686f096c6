"""What the documentation shows is run as it stands, on the backend of these tests: what is cheap enough for that."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.files import give_pictures
from docs.pages import ROOT, Block, commands
from docs.rules import Case, How, case_of, tried
from docs.shell import Shell, forwarded, shell
from support.serving import Running
from unerase import Client

from .conftest import Traced

PORT = 50051


@pytest.fixture(scope="module")
def documented(backend: Running) -> Iterator[None]:
    """The address that the pages name, and the client's default, lead to the backend."""
    host, port = backend.address.rsplit(":", 1)
    try:
        with forwarded(PORT, (host, int(port))):
            yield
    except OSError as error:
        pytest.fail(f"port {PORT}, which the documentation names, is needed for these tests: {error}")


@pytest.fixture
def reader(tmp_path: Path, client: Client) -> Iterator[Shell]:
    """A shell in a folder with what a clone has, and pictures; concepts that were created are deleted again."""
    for name in ("protos", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    give_pictures(tmp_path)
    before = {concept.name for concept in client.concepts()}
    with shell(tmp_path) as opened:
        yield opened
    for created in {concept.name for concept in client.concepts()} - before:
        client.delete_concept(created)


@pytest.mark.parametrize("block", [each for each in tried(How.SESSION) if each.language == "python"], ids=str)
def test_a_snippet_runs(block: Block, documented: None, reader: Shell, traced: Traced) -> None:
    (reader.folder / "snippet.py").write_text(block.text)
    said = reader.run(f"{sys.executable} snippet.py {traced.audit}")
    assert said.strip(), "a snippet shows something"


@pytest.mark.parametrize("block", [each for each in tried(How.SESSION) if each.language == "sh"], ids=str)
def test_commands_run(block: Block, documented: None, reader: Shell) -> None:
    for command in commands(block.text):
        if case_of(command)[0] is not Case.SKIPPED:
            reader.run(command)
