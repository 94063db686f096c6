"""The command `power`: its table, its JSON, and what it refuses."""

import json

import pytest
from typer.testing import CliRunner

from unerase._cli import app
from unerase._commands.failing import ExitCode

POWER = (
    "power",
    "--cases",
    "24",
    "--cases",
    "48",
    "--false-positives",
    "0.01",
    "--shared-errors",
    "0",
    "--audits",
    "50",
)


def test_power_shows_how_many_cases_are_enough() -> None:
    ended = CliRunner().invoke(app, POWER, env={"COLUMNS": "200"})
    assert ended.exit_code == 0, ended.output
    assert "A: removed, destruction 1.0" in ended.stdout
    assert "1 % false positives, 0 % shared: 24 cases reach 80 % removed for model A" in ended.stdout
    found = json.loads(CliRunner().invoke(app, [*POWER, "--json", "--decided-by", "judge", "--chance", "0.9"]).stdout)
    assert [row["cases"] for row in found["rows"]] == [24, 48]
    assert found["enough"] == [{"false_positives": 0.01, "shared_errors": 0.0, "cases": 0}]


def test_a_row_takes_one_line_of_a_terminal() -> None:
    shown = CliRunner().invoke(app, POWER, env={"COLUMNS": "80"}).stdout.splitlines()
    (head,) = (line for line in shown if line.split()[:1] == ["cases"])
    rows = shown[shown.index(head) + 1 :][:2]
    assert [row.split()[0] for row in rows] == ["24", "48"]
    assert all(row.count("/") >= 8 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "0"], "cases: must be from 1 to 512, not 0"),
        (["--false-positives", "inf"], "must be a number, not inf"),
        (["--decided-by", "nobody"], "must be judge or both"),
        (["--evaluation", "noise-based"], "'standard-prompt' must be among them"),
    ],
)
def test_power_refuses_what_cannot_be(arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, ["power", *arguments], env={"COLUMNS": "400"})
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert said in ended.stderr
    assert ended.stdout == ""
