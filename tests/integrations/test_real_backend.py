"""What docs/integrations.md shows of programs that work with a backend, on a backend: `make integrations`."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import ROOT, Block, blocks, commands
from docs.shell import shell
from support.serving import Running, serving

pytestmark = pytest.mark.integrations
for package in ("inspect_ai", "pyrit"):
    pytest.importorskip(package)

PAGE = "docs/integrations.md"
DOCUMENTED = "127.0.0.1:50051"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A backend with the testbed's models."""
    with serving(tmp_path_factory.mktemp("backend")) as running:
        yield running


def block(begins: str) -> Block:
    (found,) = [each for each in blocks(PAGE) if each.text.lstrip().startswith(begins)]
    return found


def test_the_page_is_followed(backend: Running, tmp_path: Path) -> None:
    """Each program runs as the page says; the audits are made small."""
    for name in ("protos", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules"))
    small = " -T battery= -T evaluations=standard-prompt -T cases=4 -T steps=10 -T allow_incomplete=true"
    with shell(tmp_path) as reader:
        for command in commands(block("export UNERASE_ADDRESS").text):
            typed = command.replace(DOCUMENTED, backend.address)
            reader.run(typed.replace(" -T battery=quick", f"{small} --display plain"))
        (tmp_path / "read.py").write_text(block("from pathlib import Path").text)
        # The embedded testbed's audited model does not show the concept by the plain prompt.
        assert reader.run(f"{sys.executable} read.py") == "standard-prompt 0.0 4 0\n"

        (tmp_path / "attack.py").write_text(block("import asyncio").text)
        *_, last = reader.run(f"{sys.executable} attack.py").splitlines()
        path, value = last.rsplit(" ", 1)
        assert Path(path).read_bytes().startswith(b"\x89PNG")
        # The reference knows the concept.
        assert value == "True"

        for command in commands(block("cd examples/javascript").text):
            typed = command.replace(DOCUMENTED, backend.address)
            said = reader.run(f"{typed} --cases 4" if "node" in typed else typed)
            reader.folder = tmp_path / "examples" / "javascript"
        assert "The report is in report.json" in said
        report = json.loads((reader.folder / "report.json").read_text())
        assert report["content"]["spec"]["subject"] == "testbed/uce"
