"""The laws of the sampler: diffusers' pictures, and bits that depend on the trajectory alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Resumption, TokenIds, Trajectory
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Sampler, draws_at_once
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import InvalidRequestError

TrajectoryOf = Callable[..., Trajectory]
ROWS = 6


@pytest.fixture(scope="module")
def sampler(model: DiffusionModel) -> Sampler:
    return Sampler(model, batch_rows=ROWS, decode_batch=2)


@pytest.fixture(scope="module")
def mixed(trajectory_of: TrajectoryOf) -> list[Trajectory]:
    """Trajectories of every kind: prompts, lengths, guided or not, with noise or not."""
    return [
        trajectory_of(latent_seed=5),
        trajectory_of("a red heart", steps=3, guidance_scale=1.0),
        trajectory_of("", guidance_scale=1.0, latent_seed=6),
        trajectory_of(eta=1.0, guidance_scale=7.5, steps=2),
        trajectory_of("a striped circle", eta=1.85, variance_scale=1.04, latent_seed=7, steps=5),
        trajectory_of(stop_step=2, eta=1.17, noise_seed=2**64 - 1),
        trajectory_of(conditioning=Conditioning(token_ids=TokenIds(ids=[5, 7])), latent_seed=2**64 - 1),
    ]


@pytest.fixture(scope="module")
def alone(sampler: Sampler, mixed: list[Trajectory]) -> list[Finished]:
    return [sampler.run([trajectory])[0] for trajectory in mixed]


def same(one: Finished, other: Finished) -> bool:
    return torch.equal(one.latents, other.latents) and np.array_equal(one.picture, other.picture)


def start(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("guidance_scale", "eta", "steps"), [(3.0, 0.0, 10), (7.5, 0.0, 5), (1.0, 0.0, 10), (3.0, 1.0, 10)]
)
def test_a_trajectory_is_what_diffusers_makes_of_it(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf, guidance_scale: float, eta: float, steps: int
) -> None:
    trajectory = trajectory_of("a red heart", guidance_scale=guidance_scale, eta=eta, steps=steps, latent_seed=9)
    (ours,) = sampler.run([trajectory])
    shown: dict[str, Any] = {}

    def see(pipe: Any, step: int, timestep: int, state: dict[str, Any]) -> dict[str, Any]:
        shown["latents"] = state["latents"]
        return state

    picture = pipeline(
        "a red heart",
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        eta=eta,
        latents=start(9),
        generator=torch.Generator().manual_seed(2),
        callback_on_step_end=see,
    ).images[0]
    torch.testing.assert_close(ours.latents, shown["latents"][0], rtol=1e-4, atol=1e-4)
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(int) - np.asarray(picture).astype(int)).max() <= 1


@pytest.mark.parametrize("seed", [0, 4967, 2**32 - 1, 2**64 - 1])
def test_a_published_seed_is_diffusers_own_draw(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf, seed: int
) -> None:
    """A list's seed means a pipeline's CPU generator; where the list was made with batches, the first row."""
    (ours,) = sampler.run([trajectory_of("a red heart", steps=3, latent_seed=seed)])
    generator = torch.Generator().manual_seed(seed)
    picture = pipeline("a red heart", num_inference_steps=3, guidance_scale=3.0, generator=generator).images[0]
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_together_is_as_alone(sampler: Sampler, mixed: list[Trajectory], alone: list[Finished]) -> None:
    assert all(map(same, sampler.run(mixed), alone))


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_company_order_and_start_gives_the_same_bits(
    sampler: Sampler, mixed: list[Trajectory], alone: list[Finished], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(mixed))))
    delays = {index: data.draw(st.integers(0, 4)) for index in order}
    finished: dict[str, Finished] = {}
    tick = 0
    while len(finished) < len(mixed):
        for index in order:
            if delays[index] == tick:
                sampler.admit(str(index), mixed[index])
        finished |= {item.key: item for item in sampler.tick()}
        tick += 1
    assert all(same(finished[str(index)], alone[index]) for index in order)


def test_a_full_batch_of_the_default_shape_keeps_the_law(model: DiffusionModel, trajectory_of: TrajectoryOf) -> None:
    sampler = Sampler(model)
    crowd = [trajectory_of(latent_seed=seed, steps=2, eta=0.5, noise_seed=seed) for seed in range(24)]
    together = sampler.run(crowd)
    assert all(same(together[place], sampler.run([crowd[place]])[0]) for place in (0, 13, 23))


@pytest.mark.parametrize("eta", [0.0, 1.34])
@pytest.mark.parametrize("taken", [1, 3])
def test_resuming_is_never_having_stopped(
    sampler: Sampler, trajectory_of: TrajectoryOf, eta: float, taken: int
) -> None:
    (whole,) = sampler.run([trajectory_of(eta=eta, steps=5)])
    (first,) = sampler.run([trajectory_of(eta=eta, steps=5, stop_step=taken)], picture=False)
    assert first.picture is None
    resumption = Resumption(latents=to_message(first.latents), step=taken)
    # The latent seed has done its part.
    (rest,) = sampler.run([trajectory_of(eta=eta, steps=5, resumption=resumption, latent_seed=77)])
    assert same(rest, whole)
    (middle,) = sampler.run([trajectory_of(eta=eta, steps=5, resumption=resumption, stop_step=4)], picture=False)
    (direct,) = sampler.run([trajectory_of(eta=eta, steps=5, stop_step=4)], picture=False)
    assert torch.equal(middle.latents, direct.latents)


@given(steps=st.integers(1, 20), begun=st.integers(0, 9), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_noise_drawn_in_portions_is_that_of_each_step(steps: int, begun: int, sizes: list[int]) -> None:
    """As the sampler draws it, from some place of a portion on."""
    portion = draws_at_once(sizes)
    one_by_one, together = (torch.Generator().manual_seed(7) for _ in range(2))
    expected = [torch.randn(sizes, generator=one_by_one) for _ in range(steps)]
    made: list[Tensor] = []
    while len(made) < steps:
        made += torch.randn((portion - (0 if made else begun % portion), *sizes), generator=together)
    assert torch.equal(torch.stack(made[:steps]), torch.stack(expected))


def test_the_two_seeds_are_independent(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    plain, other_noise_seed, noisy, other_noise, other_start = sampler.run(
        [
            trajectory_of(),
            trajectory_of(noise_seed=3),
            trajectory_of(eta=1.0),
            trajectory_of(eta=1.0, noise_seed=3),
            trajectory_of(latent_seed=3),
        ]
    )
    assert same(plain, other_noise_seed)
    assert not any(same(plain, changed) for changed in (noisy, other_noise, other_start))
    assert not same(noisy, other_noise)


def test_every_option_has_an_effect(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"variance_scale": 1.02},
        {"eta": 1.17},
        {"guidance_scale": 3.1},
        {"steps": 5},
        {"stop_step": 3},
        {"noise_seed": 9},
        {"latent_seed": 9},
        {"conditioning": Conditioning(text="a picture of a heart")},
    ]
    results = sampler.run([trajectory_of(**{"eta": 1.0} | option) for option in options])
    for index, result in enumerate(results):
        assert not any(same(result, other) for other in results[:index]), options[index]


def test_cancelling_between_steps_leaves_the_others_alone(
    sampler: Sampler, mixed: list[Trajectory], alone: list[Finished]
) -> None:
    for index, trajectory in enumerate(mixed):
        sampler.admit(str(index), trajectory)
    sampler.tick()
    in_flight = sampler.rows_in_use
    for index in (0, 1, 6):
        sampler.cancel(str(index))
    assert sampler.rows_in_use < in_flight
    finished: dict[str, Finished] = {}
    while sampler.busy:
        finished |= {item.key: item for item in sampler.tick()}
    assert sorted(finished) == ["2", "3", "4", "5"]
    assert all(same(item, alone[int(key)]) for key, item in finished.items())
    assert sampler.rows_in_use == 0


def test_what_is_not_finite_fails_alone(
    sampler: Sampler, model: DiffusionModel, trajectory_of: TrajectoryOf, mixed: list[Trajectory], alone: list[Finished]
) -> None:
    # Finite, but its squares are not.
    huge = torch.full(empty_encoding(model).states.shape, 3e38)
    huge[::2] = -3e38
    broken = trajectory_of(conditioning=Conditioning(embedding=to_message(huge)))
    results = sampler.run([mixed[0], broken, *mixed[1:]])
    assert results[1].failure == "the latents are not finite"
    assert results[1].picture is None
    assert all(map(same, [results[0], *results[2:]], alone))
    assert all(map(same, sampler.run(mixed), alone))


def test_new_ones_start_as_others_finish(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    guided, unguided = trajectory_of(steps=2), trajectory_of(steps=1, guidance_scale=1.0)
    for index, trajectory in enumerate([guided, unguided, guided, unguided, guided]):
        sampler.admit(str(index), trajectory, picture=False)
    assert sampler.room < 0
    # Those of one tick come in the order of their places, which what went before has mixed.
    assert {item.key for item in sampler.tick()} == {"1", "3"}
    assert sampler.rows_in_use == 4
    assert {item.key for item in sampler.tick()} == {"0", "2"}
    assert [item.key for item in [*sampler.tick()]] == ["4"]
    assert not sampler.busy


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"steps": 1000}, "steps"),
        ({"conditioning": Conditioning()}, "conditioning"),
        (
            {"conditioning": Conditioning(token_ids=TokenIds(ids=[99_999]))},
            "conditioning.token_ids.ids[0]",
        ),
        ({"resumption": Resumption(latents=to_message(torch.zeros(4, 8, 9)), step=1)}, "resumption.latents"),
    ],
)
def test_what_the_model_cannot_run_is_refused(
    sampler: Sampler, trajectory_of: TrajectoryOf, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sampler.admit("bad", trajectory_of(**fields))
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not sampler.busy
