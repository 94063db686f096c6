"""Trajectories that begin from a picture, and estimates of x_0: diffusers' formulas, and the sampler's laws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from support.diffusion_by_hand import noise, picture, predict
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Inpainting, Resumption, Trajectory
from unerase_backend.diffusion import pictures
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.testbed import world

TrajectoryOf = Callable[..., Trajectory]
PROMPT = "a picture of a hourglass"


@pytest.fixture(scope="module")
def sampler(model: DiffusionModel) -> Sampler:
    return Sampler(model, batch_rows=6, decode_batch=2)


@pytest.fixture(scope="module")
def shown() -> list[Picture]:
    return list(world.album_of(("heart",), 3, 5).pictures)


def from_picture(number: int, step: int) -> Resumption:
    return Resumption(picture_digest=str(number), step=step)


def same(one: Finished, other: Finished) -> bool:
    return torch.equal(one.latents, other.latents) and np.array_equal(one.picture, other.picture)


@pytest.mark.parametrize(
    ("guidance_scale", "eta", "taken"), [(3.0, 0.0, 2), (1.0, 0.0, 1), (3.0, 1.0, 3), (7.5, 0.0, 5)]
)
def test_the_estimate_is_that_of_diffusers_at_the_last_step(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf, guidance_scale: float, eta: float, taken: int
) -> None:
    asked = trajectory_of(
        steps=5, stop_step=taken, guidance_scale=guidance_scale, eta=eta, latent_seed=9, noise_seed=4, estimate=True
    )
    (ours,) = sampler.run([asked])
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(5)
    (latents,), drawn = noise(9), noise(4, taken)
    for timestep, each in zip(scheduler.timesteps[:taken], drawn, strict=True):
        e = predict(pipeline, latents, timestep, PROMPT, guidance_scale)
        step = scheduler.step(e, timestep, latents, eta=eta, variance_noise=each)
        latents = step.prev_sample
    torch.testing.assert_close(ours.latents, step.pred_original_sample[0], rtol=1e-3, atol=1e-3)
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(int) - picture(pipeline, step.pred_original_sample)).max() <= 2


def test_the_estimate_takes_no_call_of_its_own(
    sampler: Sampler, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    calls: list[None] = []
    handle = model.denoiser.register_forward_pre_hook(lambda module, arguments: calls.append(None))
    try:
        sampler.run([trajectory_of(stop_step=3, estimate=True)])
    finally:
        handle.remove()
    assert len(calls) == 3


@pytest.mark.parametrize("eta", [0.0, 1.34])
@pytest.mark.parametrize("taken", [1, 4])
def test_a_picture_begins_as_diffusers_noises_it(
    sampler: Sampler,
    model: DiffusionModel,
    pipeline: Any,
    shown: list[Picture],
    trajectory_of: TrajectoryOf,
    eta: float,
    taken: int,
) -> None:
    fields: dict[str, Any] = {"steps": 5, "eta": eta, "latent_seed": 9}
    given = [Given(beginning=shown[1])]
    (begun,) = sampler.run([trajectory_of(**fields, resumption=from_picture(1, taken))], given=given)
    (clean,) = pictures.encode(model, [shown[1]], 2)
    (n,) = noise(9)
    pipeline.scheduler.set_timesteps(5)
    noised = pipeline.scheduler.add_noise(clean[None], n, pipeline.scheduler.timesteps[taken])[0]
    (by_diffusers,) = sampler.run(
        [trajectory_of(**fields, resumption=Resumption(latents=to_message(noised), step=taken))]
    )
    torch.testing.assert_close(begun.latents, by_diffusers.latents, rtol=1e-4, atol=1e-4)
    # And bit for bit from the same sum made by hand.
    of_picture, of_noise = model.schedule.kept_coefficients(5)[taken - 1].float()
    by_hand = Resumption(latents=to_message(of_picture * clean + of_noise * n[0]), step=taken)
    (resumed,) = sampler.run([trajectory_of(**fields | {"latent_seed": 77}, resumption=by_hand)])
    assert same(begun, resumed)


def test_what_shares_the_batch_changes_nothing(
    sampler: Sampler, shown: list[Picture], trajectory_of: TrajectoryOf
) -> None:
    mixed = [
        (trajectory_of(resumption=from_picture(0, 1)), Given(beginning=shown[0])),
        (trajectory_of(resumption=from_picture(0, 1), estimate=True), Given(beginning=shown[0])),
        (trajectory_of(resumption=from_picture(0, 1), latent_seed=8), Given(beginning=shown[0])),
        (trajectory_of(resumption=from_picture(2, 1)), Given(beginning=shown[2])),
        (trajectory_of("", guidance_scale=1.0, resumption=from_picture(1, 2), eta=1.2), Given(beginning=shown[1])),
        (trajectory_of("a red heart", stop_step=2, estimate=True, eta=1.0), Given()),
        (trajectory_of("a red heart", stop_step=2, eta=1.0), Given()),
        (
            trajectory_of(
                resumption=from_picture(1, 1), inpainting=Inpainting(picture_digest="2", mask_share=0.5), estimate=True
            ),
            Given(picture=shown[2], beginning=shown[1]),
        ),
    ]
    trajectories, given = [list(each) for each in zip(*mixed, strict=True)]
    alone = [sampler.run([trajectory], given=[names])[0] for trajectory, names in mixed]
    assert all(map(same, sampler.run(trajectories, given=given), alone))
    assert all(map(same, reversed(sampler.run(trajectories[::-1], given=given[::-1])), alone))
    # Every option has an effect.
    latents = [item.latents for item in alone]
    assert not any(torch.equal(one, two) for index, one in enumerate(latents) for two in latents[:index])


def test_around_the_mask_of_an_estimate_the_clean_picture_stands(
    sampler: Sampler, model: DiffusionModel, shown: list[Picture], trajectory_of: TrajectoryOf
) -> None:
    """Within it, after one step, nothing of the picture counts yet: the estimate is that without a mask."""
    around = Inpainting(picture_digest="2", mask_share=0.5)
    masked, free = sampler.run(
        [trajectory_of(stop_step=1, estimate=True, inpainting=around), trajectory_of(stop_step=1, estimate=True)],
        given=[Given(picture=shown[2]), Given()],
    )
    expected = pictures.encode(model, [shown[2]], 2)[0].clone()
    expected[:, 2:6, 2:6] = free.latents[:, 2:6, 2:6]
    assert torch.equal(masked.latents, expected)


def test_an_estimate_that_is_not_finite_fails(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    huge = torch.full(empty_encoding(sampler.model).states.shape, 3e38)
    huge[::2] = -3e38
    (failed,) = sampler.run([trajectory_of(conditioning=Conditioning(embedding=to_message(huge)), estimate=True)])
    assert failed.failure == "the latents are not finite"


@pytest.mark.parametrize("beginning", [None, np.zeros((64, 64, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)])
def test_a_picture_of_another_size_is_refused(
    sampler: Sampler, trajectory_of: TrajectoryOf, beginning: Picture | None
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sampler.admit("bad", trajectory_of(resumption=from_picture(0, 1)), given=Given(beginning=beginning))
    assert [violation.field for violation in caught.value.violations] == ["resumption.picture_digest"]
    assert not sampler.busy
