"""Tables of the documentation say what the code says: methods, columns, exit codes, defaults."""

import re

import pytest

from docs.pages import text_of
from support.backend import own_evaluations
from unerase import AsyncClient, Client, ClientSettings
from unerase._campaign_file import AUDIT, CAMPAIGN
from unerase._commands.failing import ExitCode
from unerase.v1.audits_pb2 import Battery
from unerase.v1.types_pb2 import (
    MODEL_CAPABILITY_LEARNED_TOKENS,
    MODEL_CAPABILITY_TOKEN_IDS,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    EvaluationClass,
)
from unerase_backend.catalogue import GUIDANCE_SCALES, MAX_STEPS
from unerase_backend.catalogue.model_families import FAMILIES, Guidance
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.report.parquet import SCHEMA
from unerase_backend.runtime.bounds import most_items
from unerase_backend.serve_settings import ServeSettings


def _rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first row begins with `heading`."""
    lines = text_of(page).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_the_clients_methods(client: type) -> None:
    described = {name for cells in _rows("docs/client.md", "method") for name in re.findall(r"`(\w+)\(", cells[0])}
    assert described == {name for name in dir(client) if not name.startswith("_")}


def test_the_columns_of_the_observations() -> None:
    described: set[str] = set()
    judged: list[str] = []
    for cells in _rows("docs/client.md", "columns"):
        names = re.findall(r"`(\w+)`", cells[0])
        if names[0].startswith("selector_"):
            judged = [names[0].removeprefix("selector"), *names[1:]]
            prefixes = ["selector", *re.findall(r"`(\w+)_`", cells[1])]
            described |= {f"{prefix}{name}" for prefix in prefixes for name in judged}
        else:
            described |= set(names)
    assert judged
    assert described == set(SCHEMA.names)


def test_the_keys_of_a_campaigns_file() -> None:
    rows = _rows("docs/campaigns.md", "key")
    described = {name for cells in rows for name in re.findall(r"`(\w+)`", cells[0])}
    assert described == CAMPAIGN.keys.keys()
    [audit] = [cells[1] for cells in rows if cells[0] == "`audit`"]
    assert AUDIT.keys.keys() <= set(re.findall(r"`(\w+)`", audit))


def test_the_evaluations() -> None:
    """Every registered evaluation has its row, with its class, and no row is of one that there is not."""
    described = {cells[0].strip("`"): cells[1] for cells in _rows("docs/evaluations.md", "name")}
    classes = {
        name: EvaluationClass.Name(evaluation.description.evaluation_class).removeprefix("EVALUATION_CLASS_").lower()
        for name, evaluation in own_evaluations().items()
    }
    assert described == classes


def test_the_needs_of_evaluations() -> None:
    """Every evaluation that needs something of the models' family has a row with each of it."""
    words = {
        "predictions without guidance": MODEL_CAPABILITY_UNGUIDED_ROW,
        "learned embeddings": MODEL_CAPABILITY_LEARNED_TOKENS,
        "prompts as token ids": MODEL_CAPABILITY_TOKEN_IDS,
    }
    rows = {cells[0].strip("`"): cells[1] for cells in _rows("docs/evaluations.md", "evaluation")}
    described = {name: {need for said, need in words.items() if said in row} for name, row in rows.items()}
    needs = {name: set(each.description.needs) for name, each in own_evaluations().items() if each.description.needs}
    assert described == needs


def test_the_families_of_models() -> None:
    described = {
        re.findall(r"`([\w-]+)`", family)[0]: (guidance.split(":")[0], unguided == "yes", tokens == "yes")
        for family, guidance, unguided, tokens in _rows("docs/evaluations.md", "family")
    }
    guidances = {
        Guidance.CLASSIFIER_FREE: "classifier-free",
        Guidance.EMBEDDED: "the scale is an input of the network",
        Guidance.NONE: "none",
    }
    assert described == {
        family.name: (
            guidances[family.guidance],
            MODEL_CAPABILITY_UNGUIDED_ROW in family.capabilities,
            {MODEL_CAPABILITY_LEARNED_TOKENS, MODEL_CAPABILITY_TOKEN_IDS} <= family.capabilities,
        )
        for family in FAMILIES
    }


def test_the_required_evaluations() -> None:
    """The verdict's rules name them."""
    (named,) = re.findall(r"The required evaluations are (.*), and every evaluation that", text_of("docs/verdict.md"))
    required = {name for name, evaluation in own_evaluations().items() if evaluation.description.required}
    assert set(re.split(r", | and ", named)) == required


def test_the_exit_codes() -> None:
    described = {int(cells[0]) for cells in _rows("docs/client.md", "exit code")}
    assert described == {0, *map(int, ExitCode)}


def test_the_waits_of_the_client() -> None:
    settings, page = ClientSettings(), text_of("docs/client.md")
    assert (
        f"ends after {settings.timeout_seconds:.0f} seconds, a transfer after {settings.transfer_timeout_seconds:.0f}"
        in page
    )
    assert settings.watch_patience_seconds == 120
    assert "again for two minutes" in page


def test_the_defaults_of_settings() -> None:
    """A row names a setting and what it is unless given: a number, or in words that 0 is."""
    fields = ServeSettings.model_fields
    rows = _rows("docs/operations.md", "setting")
    assert rows
    for variable, default, *_ in rows:
        known = fields[variable.strip("`").removeprefix("UNERASE_SERVE_").lower()].default
        number = re.match(r"[\d,_.]+", default)
        told = float(re.sub("[,_]", "", number[0])) if number else 0.0
        assert told == known, f"{variable}: {default}, but the code says {known}"


def test_the_limits_of_an_audit() -> None:
    limits = {cells[0]: cells[1] for cells in _rows("docs/limits.md", "what")}
    low, high = GUIDANCE_SCALES
    assert limits["an audit's cases, steps, guidance"] == f"{MAX_CASES}; {MAX_STEPS}; {low:g} to {high:g}"
    assert limits["an audit's evaluations"].startswith(f"{most_items(Battery, 'evaluations')},")


def test_defaults_that_stand_in_the_prose() -> None:
    told = re.findall(r"`UNERASE_SERVE_([A-Z_]+)` \(([\d.]+)\)", text_of("docs/operations.md"))
    assert told
    for name, default in told:
        assert ServeSettings.model_fields[name.lower()].default == float(default), name
