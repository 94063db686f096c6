"""Tracing: which models lie between the reference and the subject, and what is measured of each."""

from typing import Any

from support.backend import NEVER, REFERENCE, LocalBackend
from unerase.internal.v1alpha1.generation_pb2 import (
    Interpolation,
    ModelChange,
)
from unerase.v1.types_pb2 import (
    MODEL_ROLE_SUBJECT,
    Observation,
)
from unerase_backend.probing.probes.tracing import traced_strengths
from unerase_backend.runtime.seeds import derive_seed

FEW = {"timesteps": 2, "pictures": 2, "other_pictures": 1}


def losses_of(seen: list[Observation], arm: str) -> list[dict[str, float]]:
    return [dict(observation.measures) for observation in seen if observation.arm == arm]


def test_the_way_begins_at_the_reference_and_goes_on_in_order() -> None:
    assert traced_strengths([1.0, 0.5, 0.5, 0.25]) == [0.0, 0.25, 0.5, 1.0]
    assert traced_strengths([0.30000000000000004, 0.3]) == [0.0, 0.3]


async def test_each_strength_asks_for_its_model_and_the_same_pictures(recording: Any, local: LocalBackend) -> None:
    unit = local.unit("tracing", NEVER, cases=3, parameters={"strengths": [0.5, 1.0], **FEW})
    seen = await recording.observe(unit)
    half = [ModelChange(interpolation=Interpolation(model=NEVER, share=0.5))]
    asked = [(request.model, list(request.changes)) for request in recording.generated]
    assert asked == [(REFERENCE, []), (REFERENCE, half), (NEVER, [])]
    assert {request.trajectories[2].latent_seed for request in recording.generated} == {unit.cases[2].latent_seed}
    assert all(request.trajectories == recording.generated[0].trajectories for request in recording.generated)
    measured = {(request.model, *(str(change) for change in request.changes)) for request in recording.measured}
    assert measured == {(model, *(str(change) for change in changes)) for model, changes in asked}
    assert {request.noise_seed for request in recording.measured} == {derive_seed(unit.seed_base, "likelihood")}
    assert [observation.arm for observation in seen if observation.judgements] == [
        f"strength@{strength}" for strength in ("0", "0.5", "1") for _ in range(3)
    ]
    arms = {observation.arm for observation in seen if observation.measures}
    assert arms == {"likelihood@0", "likelihood@0.5", "likelihood@1"}


async def test_the_first_cases_unit_alone_measures_the_likelihood(recording: Any, local: LocalBackend) -> None:
    unit = local.unit("tracing", NEVER, cases=3, parameters={"strengths": [1.0], **FEW})
    del unit.cases[0]
    seen = await recording.observe(unit)
    assert not recording.measured
    assert {observation.case_index for observation in seen} == {1, 2}


async def test_the_ends_are_the_models_and_the_way_changes(local: LocalBackend) -> None:
    unit = local.unit("tracing", NEVER, parameters={"strengths": [0.5, 1.0], **FEW})
    seen = await local.observe(unit)
    for strength, model in (("0", REFERENCE), ("1", NEVER)):
        plain = await local.observe(local.unit("standard-prompt", model))
        pictures = [each.picture_digest for each in seen if each.arm == f"strength@{strength}"]
        assert pictures == [each.picture_digest for each in plain]
        likelihood = await local.observe(local.unit("likelihood", model, parameters=FEW))
        assert losses_of(seen, f"likelihood@{strength}") == [dict(each.measures) for each in likelihood]
    assert losses_of(seen, "likelihood@0") != losses_of(seen, "likelihood@0.5") != losses_of(seen, "likelihood@1")


async def test_a_subject_that_is_the_reference_stays_where_it_is(local: LocalBackend) -> None:
    unit = local.unit("tracing", REFERENCE, parameters={"strengths": [0.3, 1.0], **FEW})
    unit.role = MODEL_ROLE_SUBJECT
    seen = await local.observe(unit)
    pictures = [
        [each.picture_digest for each in seen if each.arm == f"strength@{strength}"] for strength in ("0", "0.3", "1")
    ]
    assert pictures[0] == pictures[1] == pictures[2]
    assert losses_of(seen, "likelihood@0") == losses_of(seen, "likelihood@0.3") == losses_of(seen, "likelihood@1")
