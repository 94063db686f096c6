"""Units that somebody else wrote: refused before any work, each bad field named."""

import math
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings

from support.fuzzing import FUZZ, messages
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_MODEL,
    CONTROL_KIND_PLACEBO,
    EVALUATION_CLASS_INJECTING,
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_PLAIN,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_SUBJECT,
    Case,
    Concept,
    ControlKind,
    EvaluationDescription,
)
from unerase_backend.catalogue import MAX_CONCEPT_NAMES, MAX_PROMPT_BYTES
from unerase_backend.evaluation.known_pictures import own_prompt
from unerase_backend.evaluation.parameters import parameters_struct
from unerase_backend.evaluation.registry import parameter
from unerase_backend.evaluation.units import MAX_CASES, MAX_OTHERS, check_unit
from unerase_backend.runtime.errors import InvalidRequestError

PLAIN = EvaluationDescription(
    name="plain",
    evaluation_class=EVALUATION_CLASS_PLAIN,
    parameters=[parameter("draws", "Draws.", 4, minimum=1, maximum=8, integer=True)],
)
MEASURE = EvaluationDescription(name="measure", evaluation_class=EVALUATION_CLASS_MEASURE)


def unit() -> Unit:
    question = Question(judge="judge", labels=["hourglass"])
    concept = Concept(name="hourglass", names=["hourglass"], prompts=["a {concept}"])
    target = Target(concept=concept, selector=question, judge=question, second_judge=question)
    return Unit(
        id="plain/subject/0",
        evaluation="plain",
        role=MODEL_ROLE_SUBJECT,
        model="model",
        target=target,
        others=[target],
        cases=[Case(prompt="a hourglass", latent_seed=2**64 - 1)],
        steps=10,
        guidance_scale=3.0,
    )


def test_a_good_unit_has_its_parameters() -> None:
    assert check_unit(unit(), PLAIN) == {"draws": 4}
    known = Unit(role=MODEL_ROLE_SUBJECT, target=Target(concept=Concept(name="hourglass")))
    assert check_unit(known, MEASURE) == {}


@pytest.mark.parametrize("kind", [CONTROL_KIND_MODEL, CONTROL_KIND_PLACEBO, CONTROL_KIND_CONCEPT_FREE])
def test_a_control_has_a_kind_and_no_injecting_one_is_concept_free(kind: ControlKind.ValueType) -> None:
    control = unit()
    control.role, control.control_kind = MODEL_ROLE_CONTROL, kind
    check_unit(control, PLAIN)
    injecting = EvaluationDescription(name="plain", evaluation_class=EVALUATION_CLASS_INJECTING)
    if kind != CONTROL_KIND_CONCEPT_FREE:
        check_unit(control, injecting)
        return
    with pytest.raises(InvalidRequestError) as caught:
        check_unit(control, injecting)
    assert [violation.field for violation in caught.value.violations] == ["unit.control_kind"]


def _set(path: str, value: object) -> Callable[[Unit], None]:
    def change(unit: Unit) -> None:
        *parents, name = path.split(".")
        message = unit
        for parent in parents:
            message = message.others[0] if parent == "others" else getattr(message, parent)
        if isinstance(value, list):
            del getattr(message, name)[:]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)

    return change


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("role", 0, "unit.role"),
        ("role", 99, "unit.role"),
        ("control_kind", CONTROL_KIND_PLACEBO, "unit.control_kind"),
        ("model", "", "unit.model"),
        ("cases", [], "unit.cases"),
        ("cases", [Case()] * (MAX_CASES + 1), "unit.cases"),
        ("cases", [Case(), Case(prompt="é" * MAX_PROMPT_BYTES)], "unit.cases[1].prompt"),
        ("cases", [Case(held_out_prompt="x" * (MAX_PROMPT_BYTES + 1))], "unit.cases[0].held_out_prompt"),
        ("steps", 0, "unit.steps"),
        ("steps", 2**32 - 1, "unit.steps"),
        ("guidance_scale", math.nan, "unit.guidance_scale"),
        ("guidance_scale", math.inf, "unit.guidance_scale"),
        ("guidance_scale", -1e308, "unit.guidance_scale"),
        ("guidance_scale", 0.0, "unit.guidance_scale"),
        ("others", [Target(concept=Concept(name="x"))] * (MAX_OTHERS + 1), "unit.others"),
        ("target.concept.name", "", "unit.target.concept.name"),
        ("target.concept.names", [], "unit.target.concept.names"),
        ("target.concept.names", ["x"] * (MAX_CONCEPT_NAMES + 1), "unit.target.concept.names"),
        ("target.concept.initial_token", "x" * 5000, "unit.target.concept.initial_token"),
        ("others.concept.prompts", ["x" * 5000], "unit.others[0].concept.prompts[0]"),
        ("target.judge.labels", [], "unit.target.judge.labels"),
        ("others.selector.judge", "", "unit.others[0].selector.judge"),
        ("others.selector.alternatives", ["a", ""], "unit.others[0].selector.alternatives[1]"),
    ],
)
def test_a_bad_field_is_named(path: str, value: object, field: str) -> None:
    bad = unit()
    _set(path, value)(bad)
    with pytest.raises(InvalidRequestError) as refused:
        check_unit(bad, PLAIN)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_all_bad_fields_come_at_once() -> None:
    bad = unit()
    bad.steps, bad.guidance_scale = 0, math.nan
    bad.parameters.CopyFrom(parameters_struct({"draws": 9}))
    with pytest.raises(InvalidRequestError) as refused:
        check_unit(bad, PLAIN)
    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["unit.steps", "unit.guidance_scale", "unit.parameters.draws"]


def test_a_measure_may_do_without_pictures_of_its_own_but_not_with_bad_ones() -> None:
    known = Unit(role=MODEL_ROLE_SUBJECT, target=Target(concept=Concept(name="hourglass")), guidance_scale=1e9)
    with pytest.raises(InvalidRequestError) as refused:
        check_unit(known, MEASURE)
    assert [violation.field for violation in refused.value.violations] == ["unit.guidance_scale"]


def test_a_concept_without_prompts_has_none_of_its_own() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        own_prompt(Concept(name="hourglass", names=["hourglass"]))
    assert [violation.field for violation in refused.value.violations] == ["unit.target.concept.prompts"]


@settings(parent=FUZZ)
@given(messages(Unit))
def test_any_unit_is_checked_to_the_end(any_unit: Unit) -> None:
    for description in (PLAIN, MEASURE):
        # Nothing else is raised.
        with suppress(InvalidRequestError):
            check_unit(any_unit, description)
