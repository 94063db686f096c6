"""Inpainting in the sampler: diffusers' own pipeline, the picture around the mask, and the sampler's laws."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Inpainting, Resumption, Trajectory
from unerase_backend.diffusion import pictures
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import square_margin
from unerase_backend.testbed import world

TrajectoryOf = Callable[..., Trajectory]
ROWS = 6
TRAILING = {"timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def sampler(model: DiffusionModel) -> Sampler:
    return Sampler(model, batch_rows=ROWS, decode_batch=2)


@pytest.fixture(scope="module")
def shown() -> list[Picture]:
    return list(world.album_of(("heart",), 3, 5).pictures)


def inpainting(picture: int, share: float) -> Inpainting:
    return Inpainting(picture_digest=str(picture), mask_share=share)


@pytest.fixture(scope="module")
def mixed(trajectory_of: TrajectoryOf) -> list[Trajectory]:
    """Inpainting of every kind, and plain trajectories between."""
    return [
        trajectory_of(latent_seed=5, inpainting=inpainting(0, 0.5)),
        trajectory_of("", guidance_scale=1.0, latent_seed=6, inpainting=inpainting(1, 0.75), steps=3),
        trajectory_of(latent_seed=5),
        trajectory_of("a red heart", eta=1.34, inpainting=inpainting(2, 0.25), steps=5),
        trajectory_of("a blue ring", guidance_scale=1.0),
        trajectory_of(latent_seed=7, inpainting=inpainting(0, 0.5), stop_step=2),
    ]


@pytest.fixture(scope="module")
def named(mixed: list[Trajectory], shown: list[Picture]) -> list[Given]:
    return [given_of(trajectory, shown) for trajectory in mixed]


def given_of(trajectory: Trajectory, shown: list[Picture]) -> Given:
    digest = trajectory.inpainting.picture_digest
    return Given(picture=shown[int(digest)] if digest else None)


@pytest.fixture(scope="module")
def alone(sampler: Sampler, mixed: list[Trajectory], named: list[Given]) -> list[Finished]:
    return [sampler.run([one], given=[given])[0] for one, given in zip(mixed, named, strict=True)]


def same(one: Finished, other: Finished) -> bool:
    return torch.equal(one.latents, other.latents) and np.array_equal(one.picture, other.picture)


@pytest.fixture(scope="module")
def inpainter(pipeline: Any) -> Any:
    """diffusers' inpainting over the same parts; its VAE gives the mode in place of a draw."""
    parts = StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False)
    parts.set_progress_bar_config(disable=True)
    encode = parts.vae.encode

    def without_chance(pixels: torch.Tensor) -> Any:
        encoded = encode(pixels)
        encoded.latent_dist.sample = lambda generator=None: encoded.latent_dist.mode()
        return encoded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.vae, "encode", without_chance)
        yield parts


@pytest.mark.parametrize(
    ("share", "guidance_scale", "steps", "change"),
    [
        (0.5, 3.0, 10, {}),
        (0.75, 7.5, 7, {}),
        (0.5, 1.0, 5, {}),
        (0.25, 3.0, 13, {}),
        (0.5, 3.0, 10, {"prediction_type": "v_prediction"}),
        (0.5, 3.0, 10, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **TRAILING}),
    ],
)
def test_it_is_what_diffusers_paints(
    model: DiffusionModel,
    inpainter: Any,
    monkeypatch: pytest.MonkeyPatch,
    shown: list[Picture],
    trajectory_of: TrajectoryOf,
    share: float,
    guidance_scale: float,
    steps: int,
    change: dict[str, Any],
) -> None:
    config = {**inpainter.scheduler.config, **change}
    monkeypatch.setattr(inpainter, "scheduler", DDIMScheduler.from_config(config))
    scheduled = dataclasses.replace(model, schedule=Schedule.from_config(config))
    trajectory = trajectory_of(
        "a picture of a hourglass",
        guidance_scale=guidance_scale,
        steps=steps,
        latent_seed=9,
        inpainting=inpainting(1, share),
    )
    sampler = Sampler(scheduled, batch_rows=ROWS, decode_batch=2)
    (ours,) = sampler.run([trajectory], given=[Given(picture=shown[1])])
    margin = round((1 - share) / 2 * 32)
    mask = np.zeros((32, 32), np.float32)
    mask[margin : 32 - margin, margin : 32 - margin] = 1
    seen: dict[str, Any] = {}

    def see(pipe: Any, step: int, timestep: int, state: dict[str, Any]) -> dict[str, Any]:
        seen["latents"] = state["latents"]
        return state

    picture = inpainter(
        "a picture of a hourglass",
        image=torch.from_numpy(shown[1].copy()).permute(2, 0, 1)[None] / 127.5 - 1,
        mask_image=torch.from_numpy(mask)[None, None],
        height=32,
        width=32,
        strength=1.0,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        latents=torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(9)),
        callback_on_step_end=see,
    ).images[0]
    torch.testing.assert_close(ours.latents, seen["latents"][0], rtol=1e-4, atol=1e-4)
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_around_the_mask_the_picture_stands(
    sampler: Sampler, model: DiffusionModel, shown: list[Picture], trajectory_of: TrajectoryOf
) -> None:
    whole = pictures.encode(model, shown[:1], 2)[0]
    for share, margin in ((0.5, 2), (0.51, 1), (0.75, 1), (0.01, 3)):
        (painted,) = sampler.run([trajectory_of(inpainting=inpainting(0, share))], given=[Given(picture=shown[0])])
        equal = (painted.latents == whole).all(0)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[margin : 8 - margin, margin : 8 - margin] = True
        assert torch.equal(equal, ~inside)


@settings(max_examples=200)
@given(side=st.integers(2, 2048), data=st.data())
def test_a_share_of_whole_cells_gives_them_back(side: int, data: st.DataObject) -> None:
    margin = data.draw(st.integers(0, (side - 1) // 2))
    assert square_margin(side, (side - 2 * margin) / side) == margin
    share = data.draw(st.floats(1e-9, 1, exclude_max=True))
    # Outward: at least the share, and less than a cell more on either side, or one cell or two at the least.
    square = side - 2 * square_margin(side, share)
    assert share * side - 1e-6 <= square < max(share * side + 2, 3)


def test_together_is_as_alone(
    sampler: Sampler, mixed: list[Trajectory], named: list[Given], alone: list[Finished]
) -> None:
    assert all(map(same, sampler.run(mixed, given=named), alone))
    # Every option has an effect.
    finished = [item.latents for item in alone]
    assert not any(torch.equal(one, two) for index, one in enumerate(finished) for two in finished[:index])


@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_company_order_and_start_gives_the_same_bits(
    sampler: Sampler, mixed: list[Trajectory], named: list[Given], alone: list[Finished], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(mixed))))
    delays = {index: data.draw(st.integers(0, 4)) for index in order}
    finished: dict[str, Finished] = {}
    tick = 0
    while len(finished) < len(mixed):
        for index in order:
            if delays[index] == tick:
                sampler.admit(str(index), mixed[index], given=named[index])
        finished |= {item.key: item for item in sampler.tick()}
        tick += 1
    assert all(same(finished[str(index)], alone[index]) for index in order)


@pytest.mark.parametrize("eta", [0.0, 1.34])
def test_resuming_is_never_having_stopped(
    sampler: Sampler, shown: list[Picture], trajectory_of: TrajectoryOf, eta: float
) -> None:
    given = [Given(picture=shown[2])]
    around = {"inpainting": inpainting(2, 0.5), "eta": eta, "steps": 5}
    (whole,) = sampler.run([trajectory_of(**around)], given=given)
    (first,) = sampler.run([trajectory_of(**around, stop_step=2)], picture=False, given=given)
    resumption = Resumption(latents=to_message(first.latents), step=2)
    (rest,) = sampler.run([trajectory_of(**around, resumption=resumption)], given=given)
    assert same(rest, whole)


def test_what_is_not_finite_fails_alone(
    sampler: Sampler, mixed: list[Trajectory], named: list[Given], alone: list[Finished], trajectory_of: TrajectoryOf
) -> None:
    huge = torch.full(empty_encoding(sampler.model).states.shape, 3e38)
    huge[::2] = -3e38
    broken = trajectory_of(conditioning=Conditioning(embedding=to_message(huge)), inpainting=inpainting(0, 0.5))
    results = sampler.run([mixed[0], broken, *mixed[1:]], given=[named[0], named[0], *named[1:]])
    assert results[1].failure == "the latents are not finite"
    assert all(map(same, [results[0], *results[2:]], alone))


@pytest.mark.parametrize(
    ("share", "size", "field"),
    [
        (0.5, (64, 64, 3), "inpainting.picture_digest"),
        (0.5, (32, 16, 3), "inpainting.picture_digest"),
        (0.76, (32, 32, 3), "inpainting.mask_share"),
        (0.99, (32, 32, 3), "inpainting.mask_share"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    sampler: Sampler, trajectory_of: TrajectoryOf, share: float, size: tuple[int, int, int], field: str
) -> None:
    given = Given(picture=np.zeros(size, np.uint8))
    with pytest.raises(InvalidRequestError) as caught:
        sampler.admit("bad", trajectory_of(inpainting=inpainting(0, share)), given=given)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not sampler.busy
