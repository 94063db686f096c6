"""The concept-free control asks the subject for other concepts, and the judges for the audit's own."""

from hypothesis import given
from hypothesis import strategies as st

from support.backend import LocalBackend
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Target
from unerase.v1.types_pb2 import (
    CONCEPT_KIND_OBJECT,
    CONCEPT_KIND_STYLE,
    CONTROL_KIND_CONCEPT_FREE,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_SUBJECT,
    SAMPLE_STATUS_SCORED,
    Case,
    Concept,
    EvaluationDescription,
)
from unerase_backend.catalogue import MAX_CONCEPT_NAMES
from unerase_backend.coordinator.planning.concept_free import concept_free_cases, concept_free_target, stand_ins
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.evaluation.known_pictures import held_out, learnable
from unerase_backend.evaluation.units import MAX_CASES

from .conftest import plan_of

CONCEPT = Concept(
    name="hourglass",
    kind=CONCEPT_KIND_OBJECT,
    names=["hourglass", "sandglass"],
    prompts=["a {concept}", "the {concept}", "one {concept}"],
    held_out_prompts=["this {concept}"],
    picture_digests=["h0", "h1"],
    initial_token="shape",
    sensitive=True,
)


def _other(name: str, pictures: int = 6, kind: int = CONCEPT_KIND_OBJECT, names: int = 1) -> Target:
    concept = Concept(name=name, kind=kind, names=[name, *(f"{name}{number}" for number in range(1, names))])
    concept.picture_digests.extend(f"{name}/{number}" for number in range(pictures))
    return Target(concept=concept)


def _cases(count: int) -> list[Case]:
    return [Case(index=index, latent_seed=100 + index, held_out_latent_seed=200 + index) for index in range(count)]


def test_those_of_its_kind_with_pictures_stand_in() -> None:
    others = [_other("moon"), _other("red", kind=CONCEPT_KIND_STYLE), _other("bare", pictures=1), _other("arrow")]
    assert [each.name for each in stand_ins(CONCEPT, others, 24)] == ["moon", "arrow"]
    assert [each.name for each in stand_ins(CONCEPT, others, 1)] == ["moon"]
    wordy = Concept(kind=CONCEPT_KIND_OBJECT)
    assert [each.name for each in stand_ins(wordy, others, 24)] == ["moon", "bare", "arrow"]


def test_a_case_keeps_its_template_and_its_seeds() -> None:
    places = [_other("moon", names=2).concept, _other("arrow").concept]
    cases = list(concept_free_cases(_cases(5), CONCEPT, places))
    assert [case.prompt for case in cases] == ["a moon", "the arrow", "one moon1", "a arrow", "the moon"]
    assert [case.held_out_prompt for case in cases] == ["this moon", "this arrow"] * 2 + ["this moon"]
    assert [case.latent_seed for case in cases] == [100, 101, 102, 103, 104]
    assert [case.held_out_latent_seed for case in cases] == [200, 201, 202, 203, 204]


def test_the_target_asks_about_the_concept_itself() -> None:
    target = Target(
        concept=CONCEPT,
        selector=Question(judge="clip", labels=["an hourglass"]),
        judge=Question(judge="first", labels=["hourglass"]),
        second_judge=Question(judge="second", labels=["hourglass"]),
    )
    free = concept_free_target(target, [_other("moon").concept, _other("arrow").concept], 24)
    assert (free.selector, free.judge, free.second_judge) == (target.selector, target.judge, target.second_judge)
    assert (free.concept.name, free.concept.kind) == ("hourglass", CONCEPT_KIND_OBJECT)
    # Its own words last: no prompt contains them, and no search may use them.
    assert list(free.concept.names) == ["moon", "arrow", *CONCEPT.names]
    assert list(free.concept.prompts) == list(CONCEPT.prompts)
    assert (free.concept.initial_token, free.concept.sensitive) == ("shape", True)
    assert target.concept == CONCEPT


@given(
    pictures=st.lists(st.integers(2, 9), min_size=1, max_size=12),
    names=st.integers(1, 20),
    count=st.integers(1, 60),
)
def test_a_cases_picture_and_prompt_are_of_its_other_concept(pictures: list[int], names: int, count: int) -> None:
    others = [_other(f"o{place}", number, names=names) for place, number in enumerate(pictures)]
    places = stand_ins(CONCEPT, others, count)
    free = concept_free_target(Target(concept=CONCEPT), places, count).concept
    halves = (learnable(free), held_out(free, len(free.picture_digests)))
    assert len(halves[0]) == len(halves[1])
    for case in concept_free_cases(_cases(count), CONCEPT, places):
        own = places[case.index % len(places)]
        middle = len(own.picture_digests) // 2
        assert halves[0][case.index % len(halves[0])] in own.picture_digests[:middle]
        assert halves[1][case.index % len(halves[1])] in own.picture_digests[middle:]
        assert case.prompt.split()[1] in own.names
        assert case.prompt.split()[1] in free.names


def test_it_holds_no_more_than_a_concept_may() -> None:
    others = [_other(f"o{number}", names=30) for number in range(MAX_CONCEPT_NAMES + 50)]
    places = stand_ins(CONCEPT, others, MAX_CASES)
    assert len(concept_free_target(Target(concept=CONCEPT), places, MAX_CASES).concept.names) <= MAX_CONCEPT_NAMES


def test_on_the_testbed_it_is_the_same_cases_of_other_shapes(
    local: LocalBackend, everything: dict[str, EvaluationDescription]
) -> None:
    fields = {"control_kind": "CONTROL_KIND_CONCEPT_FREE", "battery": {"preset": "full"}, "cases": 12}
    plan = plan_of(local.catalogue, local.store, everything, **fields)
    assert (plan.spec.control, plan.spec.placebos) == ("", [])
    units = [whole(unit, plan.parts) for unit in plan.units]
    control = [unit for unit in units if unit.role == MODEL_ROLE_CONTROL]
    assert {unit.control_kind for unit in control} == {CONTROL_KIND_CONCEPT_FREE}
    assert {unit.model for unit in control} == {"testbed/uce"}
    subject = {unit.id: unit for unit in units if unit.role == MODEL_ROLE_SUBJECT}
    shapes = [each for each in local.catalogue.others("hourglass") if local.catalogue.concept(each).kind == "object"]
    shapes.remove("fish")
    for unit in control:
        own = subject[unit.id.replace("/control/", "/subject/")]
        assert [case.latent_seed for case in unit.cases] == [case.latent_seed for case in own.cases]
        for field in ("selector", "judge", "second_judge"):
            assert getattr(unit.target, field) == getattr(own.target, field)
        for case in unit.cases:
            words = local.catalogue.concept(shapes[case.index % len(shapes)]).names
            assert any(word in case.prompt for word in words)
            assert not any(word in case.prompt for word in own.target.concept.names)


async def test_every_evaluation_that_has_it_runs_with_it(
    local: LocalBackend, everything: dict[str, EvaluationDescription]
) -> None:
    tiny = {
        "standard-prompt": {},
        "noise-based": {"etas": [1.0], "variance_scales": [1.0]},
        "unconditional-rate": {"draws": 1},
        "unlearn-diff-atk": {"timesteps": 1, "iterations": 1, "rows": 2},
        "p4d": {"starts": 1, "iterations": 1, "rows": 2, "tokens": 2},
        "ring-a-bell": {"population": 2, "generations": 1, "tokens": 2},
    }
    plan = plan_of(
        local.catalogue,
        local.store,
        everything,
        control_kind="CONTROL_KIND_CONCEPT_FREE",
        battery={"evaluations": [{"name": name, "parameters": each} for name, each in tiny.items()]},
        cases=2,
        steps=2,
    )
    control = [whole(unit, plan.parts) for unit in plan.units if unit.role == MODEL_ROLE_CONTROL]
    assert {unit.evaluation for unit in control} == tiny.keys()
    for unit in control:
        for observation in await local.observe(unit):
            assert observation.status == SAMPLE_STATUS_SCORED, (unit.evaluation, observation.reason)
            assert (observation.role, observation.model) == (MODEL_ROLE_CONTROL, "testbed/uce")
            assert observation.concept == "hourglass"
            assert "hourglass" not in observation.prompt
