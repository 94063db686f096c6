"""`unerase campaign` against a real coordinator: a file, its cells, its gate, and what changed in the next campaign."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from support.simulated import say, simulated_coordinator, unsay
from support.small_files import write_weights
from unerase import Client
from unerase._cli import app

from .simulation import EDITED, Backend, catalogue_of_many

SUBJECTS = [*EDITED[:2], "small/again"]
CAMPAIGN = f"""
subjects: [{", ".join(SUBJECTS)}]
concepts: [hourglass, circle]
audit:
  battery: {{evaluations: [standard-prompt], allow_incomplete: true}}
  cases: 24
  steps: 3
sequential: false
labels: {{release: "1"}}
"""


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("command")
    with simulated_coordinator(folder, catalogue_of_many(folder / "catalogue")) as running:
        yield Backend(folder, running)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    return str(tmp_path / "campaign.yaml")


def run(backend: Backend, *arguments: str) -> Result:
    options = ("--address", backend.running.address)
    # What is written to a pipe is whole, unless a width is asked for.
    return CliRunner().invoke(app, ["campaign", *arguments, *options], env={"COLUMNS": None})


def gate(folder: Path, text: str) -> str:
    (folder / "gate.yaml").write_text(text)
    return str(folder / "gate.yaml")


def test_a_campaign_is_held_against_its_gate(backend: Backend, file: str, tmp_path: Path) -> None:
    names = {name: str(tmp_path / name) for name in ("page.html", "whole.json", "cells.csv", "cells.pq", "all.pq")}
    files = ("--html", "--json-file", "--cells-csv", "--cells-parquet", "--observations")
    written = [each for pair in zip(files, names.values(), strict=True) for each in pair]
    ended = run(backend, "create", file, "--wait", "--gate", gate(tmp_path, "excess: 0.3"), *written)
    # The model that nobody edited shows both concepts.
    assert ended.exit_code == 5, ended.output
    assert "6/6 cells" in ended.stderr
    matrix = [line.split() for line in ended.stdout.splitlines() if line.startswith(("model", *SUBJECTS))]
    assert [row[0] for row in matrix] == ["model", *SUBJECTS]
    assert "gate: fail" in ended.stdout
    assert "fail: small/again x hourglass: excess" in ended.stdout
    assert "edited/0 x" not in ended.stdout
    whole = json.loads((tmp_path / "whole.json").read_text())
    identity = whole["campaign_id"] if "campaign_id" in whole else whole["campaignId"]
    with (tmp_path / "cells.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {(row["subject"], row["concept"]) for row in rows} == {
        (s, c) for s in SUBJECTS for c in ("hourglass", "circle")
    }
    assert {row["gate"] for row in rows if row["subject"] == "small/again"} == {"fail"}
    with Client(backend.running.address) as client:
        assert client.campaign_table(identity).equals(pq.read_table(tmp_path / "cells.pq"))
    assert set(pq.read_table(tmp_path / "all.pq")["cell_subject"].to_pylist()) == set(SUBJECTS)
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")
    # Its own gate again, and another one that allows cells to be undecided.
    assert run(backend, "gate", identity).exit_code == 5
    assert run(backend, "gate", identity, "--gate", gate(tmp_path, "{excess: 0.99, undecided: 2}")).exit_code == 0


def test_a_cell_that_failed_is_run_again(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(CAMPAIGN.replace("edited/0, edited/1", "edited/4"))
    say(backend.folder, "fail-edited/4")
    ended = run(backend, "create", str(file), "--wait")
    assert ended.exit_code == 3, ended.output
    assert "edited/4 x hourglass: failed MODEL_INCOMPLETE" in ended.stderr
    identity = run(backend, "list", "--ids").stdout.split()[0]
    failed = run(backend, "cells", identity, "--filter", "state = FAILED").stdout
    assert failed.count("MODEL_INCOMPLETE") == 2
    # A cell without a verdict is no pass.
    assert run(backend, "gate", identity, "--gate", gate(tmp_path, "{excess: 0.99}")).exit_code == 6
    unsay(backend.folder, "fail-edited/4")
    assert run(backend, "retry", identity).stdout == "running\n"
    watched = run(backend, "watch", identity)
    assert watched.exit_code == 0, watched.output
    assert run(backend, "retry", identity).stdout.startswith("nothing was done: no cell of ")
    assert run(backend, "cancel", identity).stdout.startswith("nothing was done: ")
    assert run(backend, "delete", identity).stdout == "deleted\n"
    assert run(backend, "show", identity).exit_code == 2


def test_a_model_that_is_replaced_is_what_changed(tmp_path: Path) -> None:
    """The next campaign has the first one's seeds; one model has other weights, and shows the concept now."""
    catalogue = catalogue_of_many(tmp_path / "catalogue")
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    with simulated_coordinator(tmp_path, catalogue) as running:
        before = Backend(tmp_path, running)
        assert run(before, "create", str(tmp_path / "campaign.yaml"), "--wait").exit_code == 0
        first = run(before, "list", "--ids").stdout.strip()
    write_weights(tmp_path / "catalogue" / "edited-1.safetensors", "other weights")
    say(tmp_path, "show-edited/1")
    with simulated_coordinator(tmp_path, catalogue) as running:
        after = Backend(tmp_path, running)
        worse = gate(tmp_path, f"no_worse_than: {first}")
        ended = run(
            after, "create", str(tmp_path / "campaign.yaml"), "--wait", "--compared-with", first, "--gate", worse
        )
        assert ended.exit_code == 5, ended.output
        assert "fail: edited/1 x hourglass: no_worse_than" in ended.stdout
        second = run(after, "list", "--ids").stdout.split()[0]
        shown = run(after, "compare", first, second).stdout
    changed = [line for line in shown.splitlines() if " x " in line and not line.startswith(" ")]
    assert [line.split(":")[0] for line in changed] == ["edited/1 x hourglass", "edited/1 x circle"]
    assert all(": worse, other weights: " in line for line in changed)
