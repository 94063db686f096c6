"""The standard prompt: one plain picture a case."""

from support.backend import LocalBackend
from support.recording import Recording


async def test_standard_prompt_is_one_plain_picture_a_case(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("standard-prompt", cases=3)
    seen = await recording.observe(unit)
    (request,) = recording.generated
    for case, trajectory, observation in zip(unit.cases, request.trajectories, seen, strict=True):
        assert (trajectory.conditioning.text, trajectory.latent_seed) == (case.prompt, case.latent_seed)
        assert (trajectory.eta, trajectory.variance_scale, trajectory.steps) == (0, 1, unit.steps)
        assert trajectory.guidance_scale == unit.guidance_scale
        assert (observation.case_index, observation.prompt) == (case.index, case.prompt)
        assert observation.picture_digest == f"0/{case.index}"
