"""The laws of every evaluation: a new one is tested by being registered."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from google.protobuf.struct_pb2 import Struct

from conformance.conftest import small, small_unit, units_of_controls
from support.backend import CONCEPT, NEVER, PLACEBO, REFERENCE, LocalBackend, evaluations, local_backend
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import (
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_UNSPECIFIED,
    MODEL_ROLE_CONTROL,
    SAMPLE_STATUS_EXCLUDED,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    ControlKind,
    Observation,
    ParameterDescription,
)
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.verdict.draws import decides

Key = tuple[str, int, str, int]
Observe = Callable[[str], AsyncIterator[list[Observation]]]

every_evaluation = pytest.mark.parametrize("name", sorted(evaluations()))


def is_measure(name: str) -> bool:
    return evaluations()[name].description.evaluation_class == EVALUATION_CLASS_MEASURE


def key(observation: Observation) -> Key:
    return observation.concept, observation.case_index, observation.arm, observation.variant


@pytest.fixture(scope="module")
async def undisturbed(local: LocalBackend) -> Callable[[str], object]:
    """Runs an evaluation alone; each once."""
    seen: dict[str, list[Observation]] = {}

    async def observe(name: str) -> list[Observation]:
        if name not in seen:
            seen[name] = await local.observe(small_unit(local, name))
        return seen[name]

    return observe


@every_evaluation
def test_it_says_what_it_is(name: str) -> None:
    description = evaluations()[name].description
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", description.name)
    assert description.title
    assert description.summary.endswith(".")
    assert description.evaluation_class != EVALUATION_CLASS_UNSPECIFIED
    assert description.attack == (name in ATTACKS.all())
    for parameter in description.parameters:
        assert parameter.description.endswith("."), parameter.name
        assert parameter.HasField("minimum"), parameter.name
        assert parameter.HasField("maximum"), parameter.name
    assert set(resolve_parameters(description, Struct())) == {parameter.name for parameter in description.parameters}


@every_evaluation
async def test_a_second_run_gives_the_same_result(name: str, undisturbed: Observe, fresh: LocalBackend) -> None:
    assert await fresh.observe(small_unit(fresh, name)) == await undisturbed(name)


@every_evaluation
async def test_what_shares_the_batch_changes_nothing(name: str, undisturbed: Observe, crowded: LocalBackend) -> None:
    company = [
        crowded.observe(small_unit(crowded, name, cases=1, seed_base=99)),
        crowded.observe(small_unit(crowded, "standard-prompt", cases=3, steps=5, seed_base=98)),
    ]
    *_, together = await asyncio.gather(*company, crowded.observe(small_unit(crowded, name)))
    assert together == await undisturbed(name)


@every_evaluation
async def test_observations_are_complete(name: str, undisturbed: Observe, local: LocalBackend) -> None:
    unit = small_unit(local, name)
    judges = [unit.target.selector.judge, unit.target.judge.judge, unit.target.second_judge.judge]
    seen = await undisturbed(name)
    assert len({key(observation) for observation in seen}) == len(seen) > 0
    for observation in seen:
        assert observation.evaluation == name
        assert observation.role == unit.role
        assert observation.concept in local.catalogue.concepts
        if observation.status == SAMPLE_STATUS_EXCLUDED:
            assert observation.reason
            assert not observation.judgements
            continue
        assert (observation.status, observation.reason) == (SAMPLE_STATUS_SCORED, "")
        assert local.store.contains(observation.picture_digest)
        assert all(math.isfinite(figure) for figure in observation.measures.values())
        assert observation.measures or [judgement.judge for judgement in observation.judgements] == judges
        assert all(0 <= judgement.score <= 1 for judgement in observation.judgements)
        assert observation.model in ("", unit.model)
        if not is_measure(name):
            assert observation.model == unit.model
            assert observation.concept == CONCEPT
            assert observation.latent_seed
            assert observation.prompt or re.search("empty|beginning", observation.arm)
    if not is_measure(name):
        description = evaluations()[name].description
        assert {observation.case_index for observation in seen} == {case.index for case in unit.cases}
        assert any(decides(description, observation.arm) for observation in seen)


@pytest.mark.parametrize(("name", "kind"), units_of_controls())
async def test_a_control_on_the_subject_pairs_with_it(
    name: str, kind: ControlKind.ValueType, undisturbed: Observe, local: LocalBackend
) -> None:
    """Draw by draw; beside a placebo, completion has only the arms that the reference does not begin."""
    unit = small_unit(local, name, control_kind=kind)
    seen = await local.observe(unit)
    of_subject = {key(observation)[1:] for observation in await undisturbed(name)}
    of_control = {key(observation)[1:] for observation in seen}
    if name == "diffusion-completion":
        of_subject = {draw for draw in of_subject if draw[1].startswith("picture-")}
    assert of_control == of_subject
    judged = [observation for observation in seen if decides(evaluations()[name].description, observation.arm)]
    assert judged
    # Two cases at the least of every budget say nothing of a rate but where the concept cannot be at all.
    assert kind != CONTROL_KIND_PLACEBO or share(judged) <= 0.25
    for observation in seen:
        assert observation.concept == (PLACEBO if kind == CONTROL_KIND_PLACEBO else CONCEPT)
        assert (observation.role, observation.model) == (MODEL_ROLE_CONTROL, unit.model)
        assert observation.status in (SAMPLE_STATUS_SCORED, SAMPLE_STATUS_EXCLUDED)


# Known pictures are the same whatever the seed.
@pytest.mark.parametrize(
    "name", sorted(name for name, each in evaluations().items() if not each.description.without_model)
)
async def test_the_seed_base_changes_the_result(name: str, undisturbed: Observe, local: LocalBackend) -> None:
    seen, other = await undisturbed(name), await local.observe(small_unit(local, name, seed_base=2))
    assert [key(observation) for observation in seen] == [key(observation) for observation in other]
    assert all(one != two for one, two in zip(seen, other, strict=True))


@dataclass
class Faulty:
    """Backends in which the second of everything fails: one sample, one picture, one measured picture a request."""

    whole: Models
    reason: str = "the latents are not finite"

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        async for response in self.whole.generate_stream(request):
            failed = Sample(status=SAMPLE_STATUS_UNSCORED, reason=self.reason)
            yield GenerateResponse(index=1, sample=failed) if response.index == 1 else response

    async def measure(self, request: MeasureDenoisingRequest) -> MeasureDenoisingResponse:
        response = await self.whole.measure_pictures(request)
        for item in response.errors:
            if item.picture == 1:
                item.errors[0] = math.nan
        return response

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        response = await self.whole.classify_pictures(request)
        for second in response.pictures[1:2]:
            second.CopyFrom(PictureJudgements(status=SAMPLE_STATUS_UNSCORED, reason=self.reason))
        return response

    def models(self) -> Models:
        return Models(self.generate, self.whole.encode_prompts, self.measure, self.classify)


def alone(observation: Observation) -> Observation:
    """What an observation says of its own picture: a distance to the others is another one where one of them fails."""
    copy = Observation()
    copy.CopyFrom(observation)
    copy.measures.pop("distance", None)
    return copy


@every_evaluation
async def test_a_nan_in_the_middle_is_counted(name: str, undisturbed: Observe, local: LocalBackend) -> None:
    whole = {key(observation): observation for observation in await undisturbed(name)}
    seen = await local.observe(small_unit(local, name), Faulty(local.models).models())
    assert [key(observation) for observation in seen] == list(whole)
    unscored = [observation for observation in seen if observation.status == SAMPLE_STATUS_UNSCORED]
    assert 0 < len(unscored) < len(seen)
    for observation in seen:
        if observation.status == SAMPLE_STATUS_UNSCORED:
            assert "not finite" in observation.reason
            assert not observation.judgements
            assert not observation.measures
            assert observation.prompt == whole[key(observation)].prompt
        else:
            assert alone(observation) == alone(whole[key(observation)])


@dataclass
class Begun(GenerationMetrics):
    """Tells when the backends are at work for the unit: a tick of the sampler, or a call of another kind."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    event: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0

    def ticked(self, unet_seconds: float, rows: int, called: int) -> None:
        if rows:
            self.loop.call_soon_threadsafe(self.event.set)

    async def or_ended(self, run: asyncio.Future[object]) -> None:
        waiting = asyncio.ensure_future(self.event.wait())
        await asyncio.wait({waiting, run}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def held(self, _: object) -> object:
        self.calls += 1
        self.event.set()
        try:
            return await asyncio.Event().wait()
        finally:
            self.calls -= 1


@pytest.fixture(scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalBackend, Begun]]:
    """A backend that tells when it is at work."""
    begun = Begun()
    async with local_backend(tmp_path_factory.mktemp("watched"), metrics=begun) as backend:
        yield backend, begun


@every_evaluation
async def test_giving_up_ends_it_and_frees_the_backends(name: str, watched: tuple[LocalBackend, Begun]) -> None:
    backend, begun = watched
    begun.event.clear()
    models = replace(backend.models, measure_pictures=begun.held, classify_pictures=begun.held)
    run = asyncio.ensure_future(backend.run(small_unit(backend, name, steps=900), models))
    await begun.or_ended(run)
    assert not run.done(), run.exception()
    run.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await run
    assert not begun.calls
    assert not backend.generation._work.shared._shared
    # The rows are free: behind 900 steps this would take minutes. Nothing of it is in the store.
    unit = small_unit(backend, "standard-prompt", steps=1, seed_base=1000 + sorted(evaluations()).index(name))
    async with asyncio.timeout(60):
        assert await backend.observe(unit)


@pytest.mark.parametrize("name", sorted(name for name in evaluations() if not is_measure(name)))
async def test_where_the_concept_cannot_be_it_is_not_found(name: str, local: LocalBackend) -> None:
    async def seen(model: str) -> list[Observation]:
        unit = small_unit(local, name, model, cases=4, steps=8)
        if name == "unconditional-rate":
            # Where nothing is asked for, the concept is rare even in the reference.
            unit.parameters["draws"] = 16
        observations = await local.observe(unit)
        description = evaluations()[name].description
        return [observation for observation in observations if decides(description, observation.arm)]

    floor = share(await seen(NEVER))
    assert floor <= 0.25
    # An attack's least budget finds little in any model.
    if name not in ATTACKS.all():
        found = await seen(REFERENCE)
        # Where nothing is asked for, the world's ten objects share the pictures.
        asked = any(observation.prompt for observation in found)
        assert share(found) >= floor + (0.25 if asked else 0.05)


def share(observations: Sequence[Observation]) -> float:
    scored = [observation for observation in observations if observation.status == SAMPLE_STATUS_SCORED]
    return sum(observation.judgements[1].detected for observation in scored) / max(len(scored), 1)


def beyond(parameter: ParameterDescription) -> list[object]:
    bad: list[float | str | bool] = [parameter.minimum - 1, parameter.maximum + 1, "many", True]
    bad += [(parameter.minimum + parameter.maximum) / 2 + 0.25] if parameter.integer else []
    return [[value] for value in bad] + [[]] if parameter.list else [*bad, [parameter.minimum]]


@every_evaluation
async def test_parameters_out_of_bounds_are_refused(name: str, local: LocalBackend) -> None:
    bad = [(each.name, value) for each in evaluations()[name].description.parameters for value in beyond(each)]
    for parameter, value in [*bad, ("no_such_parameter", 1)]:
        unit = small_unit(local, name)
        unit.parameters.update({**small(name), parameter: value})
        with pytest.raises(InvalidRequestError) as caught:
            await local.run(unit)
        assert [violation.field for violation in caught.value.violations] == [f"unit.parameters.{parameter}"]


@every_evaluation
async def test_without_a_role_or_a_concept_it_is_refused(name: str, local: LocalBackend) -> None:
    unit = small_unit(local, name)
    unit.ClearField("role")
    unit.target.concept.ClearField("name")
    with pytest.raises(InvalidRequestError) as caught:
        await local.run(unit)
    assert {violation.field for violation in caught.value.violations} == {"unit.role", "unit.target.concept.name"}


@every_evaluation
async def test_it_says_how_many_pictures_it_needs(local: LocalBackend, name: str) -> None:
    """With one fewer it cannot run, and an evaluation that needs none runs without any."""
    description = evaluations()[name].description
    unit = small_unit(local, name)
    del unit.target.concept.picture_digests[max(0, description.least_pictures - 1) :]
    if description.least_pictures:
        with pytest.raises(InvalidRequestError) as refused:
            await local.observe(unit)
        assert "picture" in refused.value.message
    else:
        await local.observe(unit)
