"""The unconditional rate: draws with an empty prompt and without guidance."""

from support.backend import LocalBackend
from support.recording import Recording
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
