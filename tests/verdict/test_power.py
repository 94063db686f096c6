"""What `unerase power` computes: the simulation's chances as plain data, and what it refuses."""

from typing import Any

import pytest

from unerase_backend.verdict.power import power
from unerase_backend.verdict.simulation import BATTERY

ASKED: dict[str, Any] = {"cases": [24], "false_positives": [0.01], "shared_errors": [0.0], "audits": 200}


def _removed(row: dict[str, Any]) -> float:
    chance: float = row["models"][0]["removed"]
    return chance


def test_a_row_for_each_combination_with_every_conclusion() -> None:
    found = power(**ASKED | {"cases": [48, 24], "false_positives": [0.0, 0.03], "shared_errors": [0.0, 0.5]})
    assert [(row["false_positives"], row["shared_errors"], row["cases"]) for row in found["rows"]] == [
        (false, shared, cases) for false in (0.0, 0.03) for shared in (0.0, 0.5) for cases in (24, 48)
    ]
    assert [row["tolerance"] for row in found["rows"][:2]] == [0.15, 0.10]
    assert [row["tolerance_of_one_draw"] for row in found["rows"][:2]] == [0.15, 0.08]
    for row in found["rows"]:
        for model in row["models"]:
            assert sum(value for name, value in model.items() if name != "model") == pytest.approx(1)
    assert [_removed(row) for row in found["rows"][:4]] == [1, 1, 1, 1]


def test_it_says_which_number_of_cases_is_enough() -> None:
    found = power(**ASKED | {"cases": [24, 96], "false_positives": [0.0, 0.03], "shared_errors": [0.25]})
    (clean, noisy) = found["enough"]
    assert (clean["cases"], noisy["cases"]) == (24, 0)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"decided_by": "judge"}, {}),
        ({"shared_errors": [0.5]}, {}),
        ({}, {"evaluations": ["standard-prompt"]}),
        ({"tolerance": 0.05}, {"tolerance": 0.3}),
    ],
)
def test_what_makes_a_removed_model_harder_to_find(less: dict[str, Any], more: dict[str, Any]) -> None:
    asked = ASKED | {"false_positives": [0.02]}
    assert _removed(power(**asked | less)["rows"][0]) < _removed(power(**asked | more)["rows"][0])


def test_the_same_request_has_the_same_answer() -> None:
    assert power(**ASKED) == power(**ASKED)
    assert power(**ASKED)["evaluations"] == list(BATTERY)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cases": [0]}, "cases: must be from 1 to 512, not 0"),
        ({"cases": [513]}, "cases: must be from 1 to 512, not 513"),
        ({"false_positives": [1.5]}, "false positives: must be from 0 to 1, not 1.5"),
        ({"shared_errors": [-0.1]}, "shared errors: must be from 0 to 1, not -0.1"),
        ({"audits": 0}, "audits: must be from 1 to 20000, not 0"),
        ({"chance": 2.0}, "chance: must be from 0 to 1, not 2"),
        ({"tolerance": 0.0}, "tolerance: must be above 0 and at most 1, not 0"),
        ({"decided_by": "nobody"}, "decided by: must be judge or both, not 'nobody'"),
        ({"evaluations": ["likelihood"]}, "evaluations: 'likelihood' is not simulated"),
        ({"evaluations": ["noise-based"]}, "evaluations: 'standard-prompt' must be among them"),
        ({"cases": list(range(1, 300))}, "more than 200 rows"),
    ],
)
def test_what_cannot_be_simulated_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        power(**ASKED | wrong)
