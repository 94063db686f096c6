"""The commands of docs/integrations.md, one after the other, with the real packages: `make integrations`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import blocks, commands
from docs.shell import Shell, shell
from support import campaign_by_hand, report_by_hand
from support.scripted_server import Script, serve
from unerase.v1.models_pb2 import Model

pytestmark = pytest.mark.integrations
for package in ("in_toto", "mlflow", "securesystemslib"):
    pytest.importorskip(package)

PAGE = "docs/integrations.md"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Shell]:
    """A shell that knows a backend with an audit and a campaign."""
    script = Script(report=report_by_hand.whole())
    script.report.content.manifest.models.append(Model(name="s", digest="ee" * 32))
    script.campaign.report = campaign_by_hand.campaign().whole
    server, port = serve(script, "127.0.0.1:0")
    environment = {
        "UNERASE_ADDRESS": f"127.0.0.1:{port}",
        "AUDIT": "a1",
        "CAMPAIGN": "c1",
        "MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri(),
        # The reader has a server.
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    with shell(tmp_path, environment) as reader:
        yield reader
    server.stop(None).wait()


def test_exports(reader: Shell) -> None:
    page = blocks(PAGE)
    begin = next(at for at, block in enumerate(page) if block.text.lstrip().startswith("unerase report"))
    end = next(at for at, block in enumerate(page) if block.text.lstrip().startswith("unerase export mlflow"))
    said = ""
    for block in page[begin : end + 1]:
        if block.language == "python":
            (reader.folder / "verify.py").write_text(block.text)
            assert reader.run(f"{sys.executable} verify.py") == "FAILED\n"
            continue
        for command in commands(block.text):
            said = reader.run(command)
    record = json.loads((reader.folder / "record.json").read_text())
    assert record["model_info"]["id"] == "example/model"
    assert len(said.strip()) == 32
