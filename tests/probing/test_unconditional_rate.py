"""The unconditional rate: draws with an empty prompt and without guidance."""

from support.backend import REDIRECTED, LocalBackend
from support.recording import Recording
from unerase.v1.types_pb2 import CONTROL_KIND_CONCEPT_FREE
from unerase_backend.runtime.seeds import derive_seed


async def test_the_unconditional_rate_asks_for_nothing(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("unconditional-rate", cases=2, seed_base=5, parameters={"draws": 3})
    seen = await recording.observe(unit)
    (request,) = recording.generated
    expected = [(case.index, variant) for case in unit.cases for variant in range(3)]
    assert [(o.case_index, o.variant) for o in seen] == expected
    assert {(o.arm, o.prompt) for o in seen} == {("empty", "")}
    for (case, variant), trajectory in zip(expected, request.trajectories, strict=True):
        assert trajectory.latent_seed == derive_seed(5, "unconditional-rate", case, variant)
        assert (trajectory.conditioning.text, trajectory.guidance_scale) == ("", 1)
        assert (trajectory.eta, trajectory.variance_scale, trajectory.steps) == (0, 1, unit.steps)


async def test_where_it_is_concept_free_other_concepts_are_asked_for(local: LocalBackend, recording: Recording) -> None:
    free, plain = (
        local.unit("unconditional-rate", REDIRECTED, cases=3, parameters={"draws": 2}, **fields)
        for fields in ({"control_kind": CONTROL_KIND_CONCEPT_FREE}, {})
    )
    seen = await recording.observe(free)
    await recording.observe(plain)
    asked, nothing = recording.generated
    assert len({case.prompt for case in free.cases}) == 3
    assert not any("hourglass" in case.prompt for case in free.cases)
    assert [each.conditioning.text for each in asked.trajectories] == [
        case.prompt for case in free.cases for _ in (1, 2)
    ]
    assert [observation.prompt for observation in seen] == [each.conditioning.text for each in asked.trajectories]
    # All else is the same, draw by draw.
    for trajectory in asked.trajectories:
        trajectory.conditioning.text = ""
    assert asked == nothing
    assert {(observation.arm, observation.concept) for observation in seen} == {("empty", "hourglass")}
