"""A negative prompt is diffusers' own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffusion.guards.conftest import GuardsOf, Run
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.guarding import UNGUARDED

TrajectoryOf = Callable[..., Trajectory]


def test_it_is_the_negative_prompt_of_diffusers(
    run: Run, guards_of: GuardsOf, pipeline: Any, trajectory_of: TrajectoryOf
) -> None:
    guards = guards_of({"kind": "negative-prompt", "text": "a hourglass"})
    (ours,) = run([trajectory_of("a picture of a hourglass", latent_seed=9, steps=8)], guards)
    shown: dict[str, Any] = {}

    def see(pipe: Any, step: int, timestep: int, state: dict[str, Any]) -> dict[str, Any]:
        shown["latents"] = state["latents"]
        return state

    picture = pipeline(
        "a picture of a hourglass",
        negative_prompt="a hourglass",
        num_inference_steps=8,
        guidance_scale=3.0,
        latents=torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(9)),
        callback_on_step_end=see,
    ).images[0]
    torch.testing.assert_close(ours.latents, shown["latents"][0], rtol=1e-4, atol=1e-4)
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_without_guidance_it_has_no_effect(run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf) -> None:
    plain = trajectory_of(guidance_scale=1.0)
    guarded, weights = (
        run([plain], guards_of({"kind": "negative-prompt", "text": "a hourglass"})),
        run([plain], UNGUARDED),
    )
    assert torch.equal(guarded[0].latents, weights[0].latents)
