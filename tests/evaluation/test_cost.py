"""Formulas of what a unit takes; conformance compares those of the evaluations with what they really do."""

import pytest

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONCEPT_KIND_COLOUR,
    CONCEPT_KIND_OBJECT,
    CONCEPT_KIND_STYLE,
    CONTROL_KIND_PLACEBO,
    Case,
    Concept,
    EvaluationDescription,
)
from unerase_backend.evaluation.cost import (
    ASSUMED_ATTACK_ROWS,
    ASSUMED_PICTURES,
    Surroundings,
    Work,
    formula_problem,
    work_of,
)
from unerase_backend.evaluation.registry import Registry
from unerase_backend.runtime.components import RegistrationError

UNIT = Unit(cases=[Case(index=index) for index in range(3, 8)], steps=10, guidance_scale=7.5)
AROUND = Surroundings(others_drawn=3, others_learned=2, held_out=(9, 4, 1))
PARAMETERS = {"draws": 4, "scales": [1.0, 2.0, 2.0], "steps": 70, "most": 6, "each": 2}


def _work(rows: str, unit: Unit = UNIT) -> int:
    return work_of(unit, EvaluationDescription(pictures="0", rows=rows), PARAMETERS, AROUND).rows


@pytest.mark.parametrize(
    ("formula", "rows"),
    [
        ("unit.cases * draws * unit.steps * unit.guided", 5 * 4 * 10 * 2),
        ("len(scales) + len(set(scales)) + len(set([0] + scales))", 3 + 2 + 3),
        ("steps - unit.steps", 60),
        ("unit.first", 0),
        ("unit.others_drawn * 10 + min(1, unit.others_learned)", 31),
        ("held_out(most, each)", 6 + 2 + 1),
        ("ceil(unit.cases / draws) * max(draws, 2)", 8),
    ],
)
def test_a_formula_is_computed(formula: str, rows: int) -> None:
    assert _work(formula) == rows


def test_a_placebos_unit_is_known() -> None:
    placebo = Unit()
    placebo.CopyFrom(UNIT)
    placebo.control_kind = CONTROL_KIND_PLACEBO
    assert (_work("3 - unit.placebo"), _work("3 - unit.placebo", placebo)) == (3, 2)


def test_an_unguided_step_is_one_row() -> None:
    assert _work("unit.guided", Unit(guidance_scale=1)) == 1


@pytest.mark.parametrize(
    "formula",
    [
        "unit.cases *",
        "cases",
        "unit.nothing",
        "unit.__class__",
        "__import__('os')",
        "().__class__",
        "draws.real",
        "[draws for draws in scales]",
        "'text'",
        "unit.cases ** 9999",
        "1 / 0",
        "scales",
        "0 - 1",
        "1e999",
        "len(draws)",
        "1 + " * 200 + "1",
    ],
)
def test_a_bad_formula_is_told_and_counted_high(formula: str) -> None:
    assert formula_problem(formula, PARAMETERS)
    description = EvaluationDescription(pictures="0", rows=formula)
    assert work_of(UNIT, description, PARAMETERS, AROUND).assumed


def test_what_does_not_say_is_counted_high() -> None:
    pictures = ASSUMED_PICTURES * 5
    assert work_of(UNIT, EvaluationDescription(), {}, AROUND) == Work(pictures, pictures * 20, assumed=True)
    attack = work_of(UNIT, EvaluationDescription(attack=True), {}, AROUND)
    assert attack.rows == pictures * 20 + ASSUMED_ATTACK_ROWS


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"pictures": "unit.cases"}, "pictures and rows: give both, or neither"),
        ({"pictures": "unit.cases", "rows": "draws"}, "the formula of rows: 'draws' is nothing that a formula knows"),
    ],
)
def test_a_bad_formula_is_refused_when_it_is_registered(given: dict[str, str], problem: str) -> None:
    async def nothing(*_: object) -> list[object]:
        return []

    registry = Registry("unerase_backend.attack.attacks", "unerase.test")
    described = {"title": "Nothing", "summary": "Nothing.", "evaluation_class": 1}
    with pytest.raises(RegistrationError, match=problem):
        registry.register("bad", **described, **given)(nothing)


def test_surroundings_are_those_of_the_concepts_kind() -> None:
    def target(kind: int, pictures: int, prompts: tuple[str, ...] = ("a {concept}",)) -> Target:
        return Target(concept=Concept(kind=kind, picture_digests=["d"] * pictures, prompts=prompts))

    others = [
        target(CONCEPT_KIND_STYLE, 5),
        target(CONCEPT_KIND_STYLE, 1, ()),
        target(CONCEPT_KIND_OBJECT, 8),
        target(CONCEPT_KIND_COLOUR, 8),
    ]
    found = Surroundings.of(target(CONCEPT_KIND_STYLE, 7), others)
    # The larger half is held out.
    assert found == Surroundings(others_drawn=2, others_learned=1, held_out=(4, 3, 1))
