"""What holds for several probes: the same trajectories for every model, judgements in the order of the panel."""

import pytest

from support.backend import NEVER, REFERENCE, LocalBackend
from support.recording import Recording


@pytest.mark.parametrize(
    "evaluation", ["standard-prompt", "noise-based", "unconditional-rate", "paraphrase", "interference"]
)
async def test_every_model_meets_the_same_trajectories(local: LocalBackend, evaluation: str) -> None:
    one, other = Recording(), Recording()
    await one.observe(local.unit(evaluation, REFERENCE))
    await other.observe(local.unit(evaluation, NEVER))
    assert [request.trajectories for request in one.generated] == [request.trajectories for request in other.generated]
    assert {request.model for request in other.generated} == {NEVER}


@pytest.mark.parametrize(
    "evaluation", ["standard-prompt", "noise-based", "diffusion-completion", "interference", "judge-quality"]
)
async def test_judgements_come_in_the_order_of_the_panel(
    local: LocalBackend, recording: Recording, evaluation: str
) -> None:
    seen = await recording.observe(local.unit(evaluation))
    judges = list(local.catalogue.default_judges())
    assert {tuple(judgement.judge for judgement in observation.judgements) for observation in seen} == {tuple(judges)}
