"""Calls with fewer rows: only where every bit is the same, and then in all that the sampler does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion import fewer_rows
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.encoding import STATES, Encoding
from unerase_backend.diffusion.fewer_rows import PARTS, call_denoiser, fewest_rows
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Sampler

TrajectoryOf = Callable[..., Trajectory]
FULL = 12


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_rows, "_ALIKE", {})


class UNet(torch.nn.Module):
    """A UNet of one number; `depends` is added times the rows of a call; `places` has, by the rows of a call, the place
    in which a row has other bits than in the others."""

    def __init__(self, depends: float, places: dict[int, int]) -> None:
        super().__init__()
        self.config = FrozenDict({"in_channels": 4})
        self.depends = depends
        self.places = places
        self.calls: list[int] = []

    def forward(self, latents: Any, timesteps: Any, *, encoder_hidden_states: Any, return_dict: bool) -> tuple[Any]:
        self.calls.append(len(latents))
        of_prompts = encoder_hidden_states.mean((1, 2))
        shown = latents * 2 + (timesteps + of_prompts)[:, None, None, None] + self.depends * len(latents)
        if (place := self.places.get(len(latents))) is not None:
            shown[place] += 1e-3
        return (shown,)


def with_unet(
    model: DiffusionModel, depends: float = 0.0, places: dict[int, int] | None = None
) -> tuple[DiffusionModel, UNet]:
    unet = UNet(depends, places or {})
    return replace(model, backbone=model.backbone.with_modules({"unet": unet})), unet


def random_prompts(model: DiffusionModel, rows: int, draw: torch.Generator) -> Encoding:
    return Encoding({STATES: torch.randn((rows, *empty_encoding(model).states.shape), generator=draw)})


def fewest(model: DiffusionModel, needed: int, full: int) -> int:
    return fewest_rows(model, needed, full, empty_encoding(model)[None])


def rows_of(model: DiffusionModel) -> tuple[torch.Tensor, torch.Tensor, Encoding]:
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn((FULL, *model.latent_shape), generator=draw)
    return latents, torch.arange(FULL), random_prompts(model, FULL, draw)


@given(used=st.permutations(range(FULL)).flatmap(lambda order: st.integers(1, FULL).map(lambda n: order[:n])))
def test_the_rows_that_are_used_are_those_of_a_full_call(model: DiffusionModel, used: list[int]) -> None:
    simple, unet = with_unet(model)
    latents, timesteps, prompts = rows_of(model)
    output, rows = call_denoiser(simple, latents, timesteps, prompts, used)
    full, _ = call_denoiser(simple, latents, timesteps, prompts, used, in_full=True)
    assert torch.equal(output[used], full[used])
    assert len(used) <= rows < len(used) + -(-FULL // PARTS)
    assert unet.calls[-2:] == [rows, FULL]


def test_a_model_whose_bits_depend_on_the_rows_is_always_called_in_full(model: DiffusionModel) -> None:
    simple, unet = with_unet(model, depends=1e-3)
    assert [fewest(simple, needed, FULL) for needed in (1, 4, 5, FULL)] == [FULL] * 4
    compared = len(unet.calls)
    assert fewest(simple, 3, FULL) == FULL
    assert len(unet.calls) == compared


@pytest.mark.parametrize("places", [{4: 3, FULL: 3}, {FULL: FULL - 1}, {4: 0}])
def test_a_model_whose_bits_depend_on_a_rows_place_is_always_called_in_full(
    model: DiffusionModel, places: dict[int, int]
) -> None:
    """As where threads divide the rows of a call unequally."""
    simple, _ = with_unet(model, places=places)
    assert fewest(simple, 3, FULL) == FULL


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("needed", "full"), [(1, 2), (4, 6), (17, 24)])
def test_rows_in_any_place_have_the_bits_of_a_full_call(
    model: DiffusionModel, threads: int, needed: int, full: int
) -> None:
    draw = torch.Generator().manual_seed(2)
    latents = torch.randn((full, *model.latent_shape), generator=draw)
    timesteps = torch.randint(1000, (full,), generator=draw)
    prompts = random_prompts(model, full, draw)
    used = torch.randperm(full, generator=draw)[:needed].tolist()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            some, _ = call_denoiser(model, latents, timesteps, prompts, used)
            whole, _ = call_denoiser(model, latents, timesteps, prompts, used, in_full=True)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(some[used], whole[used])


def test_no_call_has_a_single_row(model: DiffusionModel) -> None:
    """Two threads add up a single row in an order of their own: a denoising error would have other bits."""
    simple, _ = with_unet(model)
    assert [fewest(simple, 1, full) for full in range(2, 7)] == [2] * 5


def test_architectures_that_differ_only_in_heads_are_told_apart(model: DiffusionModel) -> None:
    def architecture(heads: int) -> str:
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
            norm_num_groups=8,
            layers_per_block=1,
            attention_head_dim=heads,
        )
        return replace(model, backbone=model.backbone.with_modules({"unet": unet})).architecture

    assert architecture(2) == architecture(2) != architecture(4)


def test_models_of_one_architecture_are_compared_once(model: DiffusionModel) -> None:
    one, of_one = with_unet(model)
    other, of_other = with_unet(model)
    assert fewest(one, 3, FULL) == fewest(other, 4, FULL) == 4
    assert of_one.calls == [4, 4, FULL]
    assert of_other.calls == []


def test_the_sampler_makes_the_same_pictures_in_smaller_calls(
    model: DiffusionModel, trajectory_of: TrajectoryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [trajectory_of(latent_seed=seed, steps=2 + seed, eta=seed % 2, guidance_scale=3.0) for seed in range(4)]

    def made(rows: Callable[[DiffusionModel, int, int, Encoding], int]) -> tuple[list[Finished], set[int]]:
        monkeypatch.setattr(fewer_rows, "fewest_rows", rows)
        sampler, called, finished = Sampler(model, batch_rows=48), set(), {}
        for index, trajectory in enumerate(asked):
            sampler.admit(str(index), trajectory)
        while sampler.busy:
            finished |= {each.key: each for each in sampler.tick()}
            called.add(sampler.rows_called)
        return [finished[str(index)] for index in range(len(asked))], called

    fewer, of_fewer = made(fewest_rows)
    full, of_full = made(lambda model, needed, full, prompts: full)
    assert of_full == {48}
    # On a machine where the bits of these shapes differ, calls stay full.
    assert of_fewer in ({8}, {48})
    for one, other in zip(fewer, full, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert (one.picture == other.picture).all()  # type: ignore[union-attr]
