"""The denoiser's graph: which models have one, and that it changes neither laws nor pictures."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion.guards.conftest import catalogue_of
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.runtime.graphs import runtime_of
from unerase_backend.runtime.onnx_runtime import runtime_version

TrajectoryOf = Callable[..., Trajectory]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def with_its_graph(model: DiffusionModel) -> DiffusionModel:
    made = with_graphs(model, 1)
    assert made.graph is not None
    return made


def same(one: Finished, other: Finished) -> bool:
    assert one.picture is not None
    assert other.picture is not None
    return torch.equal(one.latents, other.latents) and np.array_equal(one.picture, other.picture)


def steering(model: DiffusionModel, folder: Path) -> Guards:
    channels = model.denoiser.config.block_out_channels[-1]
    save_file({"direction": torch.ones(channels)}, folder / "direction.safetensors")
    entry = {"kind": "steering", "module": "mid_block", "direction": "direction.safetensors"}
    catalogue = catalogue_of(folder, entry)
    return Guards.load(catalogue.guards("own/guarded"), catalogue.model_parts("own/guarded").folder, CPU)


def with_denoiser(model: DiffusionModel, kind: Any) -> DiffusionModel:
    """The model with its weights in a denoiser of another class."""
    denoiser = kind.from_config(model.denoiser.config)
    denoiser.load_state_dict(model.denoiser.state_dict())
    return replace(model, backbone=model.backbone.with_modules({"unet": denoiser.eval().requires_grad_(False)}))


def test_the_pictures_are_those_of_the_modules(
    model: DiffusionModel, with_its_graph: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    asked = [trajectory_of(latent_seed=seed, steps=10, eta=seed % 2) for seed in range(4)]
    graphs, modules = (Sampler(each, batch_rows=12).run(asked) for each in (with_its_graph, model))
    for ours, theirs in zip(graphs, modules, strict=True):
        torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-3, atol=1e-3)
        assert ours.picture is not None
        assert theirs.picture is not None
        assert np.abs(ours.picture.astype(int) - theirs.picture).max() <= 1


def test_errors_of_denoising_are_those_of_the_modules(model: DiffusionModel, with_its_graph: DiffusionModel) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    prompts = [empty_encoding(model)]

    def errors(of: DiffusionModel) -> Any:
        steps = measure_denoising(of, [picture], ["p"], prompts, [10, 500, 990], 1, batch_rows=6, decode_batch=1)
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                return stop.value

    np.testing.assert_allclose(errors(with_its_graph), errors(model), rtol=1e-5)


def test_a_second_model_of_the_architecture_has_its_own_weights(
    catalogue: Catalogue, with_its_graph: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    other = load_model(catalogue, "testbed/never", CPU, torch.float32)
    asked = [trajectory_of()]
    (by_graph,), (by_modules,) = (Sampler(each, batch_rows=4).run(asked) for each in (with_graphs(other, 1), other))
    torch.testing.assert_close(by_graph.latents, by_modules.latents, rtol=1e-3, atol=1e-3)
    (reference,) = Sampler(with_its_graph, batch_rows=4).run(asked)
    assert (by_graph.latents - reference.latents).abs().max() > 0.1


def test_neighbours_that_are_steered_change_no_bit(
    with_its_graph: DiffusionModel, trajectory_of: TrajectoryOf, tmp_path: Path
) -> None:
    """Steered rows are computed by the modules, and all others by the graph."""
    guards = steering(with_its_graph, tmp_path)
    asked = [(trajectory_of(latent_seed=seed), Given(guards=guards) if seed % 2 else Given()) for seed in range(4)]
    sampler = Sampler(with_its_graph, batch_rows=8)
    alone = [sampler.run([trajectory], given=[given])[0] for trajectory, given in asked]
    together = sampler.run([trajectory for trajectory, _ in asked], given=[given for _, given in asked])
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    (unsteered,) = sampler.run([trajectory_of(latent_seed=1)])
    assert (unsteered.latents - alone[1].latents).abs().max() > 1e-3


def test_without_a_graph_one_call_computes_steered_rows_and_all_others(
    model: DiffusionModel, trajectory_of: TrajectoryOf, tmp_path: Path
) -> None:
    sampler = Sampler(model, batch_rows=8)
    for seed, guards in enumerate((Guards(), steering(model, tmp_path))):
        sampler.admit(str(seed), trajectory_of(latent_seed=seed), given=Given(guards=guards))
    sampler.tick()
    assert (sampler.rows_computed, sampler.rows_called) == (4, 8)


def test_every_call_is_timed(with_its_graph: DiffusionModel, trajectory_of: TrajectoryOf) -> None:
    seconds: list[float] = []
    assert with_its_graph.graph is not None
    with_its_graph.graph.timed = seconds.append
    Sampler(with_its_graph, batch_rows=4, in_full=True).run([trajectory_of(steps=3)])
    assert len(seconds) == 3
    assert all(each > 0 for each in seconds)


def test_a_profile_names_what_computes() -> None:
    assert runtime_of(CPU, torch.float32) == f"onnxruntime-{runtime_version()}"
    assert runtime_of(CPU, torch.bfloat16) == runtime_of(torch.device("cuda"), torch.float32) == "torch"


def test_models_in_another_number_type_have_none(catalogue: Catalogue) -> None:
    assert with_graphs(load_model(catalogue, "testbed/never", CPU, torch.bfloat16), 1).graph is None


def test_a_denoiser_whose_graph_says_something_else_is_computed_by_its_modules(
    model: DiffusionModel, trajectory_of: TrajectoryOf, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(type(model.denoiser)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            (output,) = super().forward(*arguments, **named)
            return (output * len(output),)

    with caplog.at_level(logging.WARNING):
        assert with_graphs(with_denoiser(model, Odd), 1).graph is None
    assert "torch computes the denoiser of testbed/reference, which has no graph: off by" in caplog.text


def test_a_denoiser_that_reads_prompts_unseen_has_no_graph(
    model: DiffusionModel, caplog: pytest.LogCaptureFixture
) -> None:
    """The prompts that it was written with would be in the graph."""

    class Odd(type(model.denoiser)):  # type: ignore[misc]
        def forward(self, *arguments: Any, encoder_hidden_states: Any, **named: Any) -> Any:
            unseen = torch.from_numpy(encoder_hidden_states.numpy().copy())
            return super().forward(*arguments, encoder_hidden_states=unseen, **named)

    with caplog.at_level(logging.WARNING):
        assert with_graphs(with_denoiser(model, Odd), 1).graph is None
    assert "which has no graph: a constant has different rows" in caplog.text
