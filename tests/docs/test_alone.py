"""Snippets and commands that need no backend are run as they stand."""

import shutil
import sys
from pathlib import Path

import pytest

from docs.pages import ROOT, Block, commands
from docs.rules import How, tried
from docs.shell import shell


@pytest.mark.parametrize("block", tried(How.ALONE), ids=str)
def test_it_runs(block: Block, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    with shell(tmp_path) as reader:
        if block.language == "python":
            (tmp_path / "snippet.py").write_text(block.text)
            reader.run(f"{sys.executable} snippet.py")
        else:
            for command in commands(block.text):
                reader.run(command)
