"""Layers that read encodings alone: which they are, and that computing them once changes nothing."""

from collections.abc import Callable

import pytest
import torch

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.denoiser_graph import random_rows
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.projections import Projections
from unerase_backend.diffusion.sampler import Sampler

TrajectoryOf = Callable[..., Trajectory]
ROWS = 3


@pytest.fixture(scope="module")
def projections(model: DiffusionModel) -> Projections:
    latents, times, encoding = random_rows(model, ROWS)
    with torch.inference_mode():
        return Projections.found(lambda: model.predict(latents, times, encoding), encoding)


def prompts(model: DiffusionModel) -> Encoding:
    return Encoding.stack(encode(model, [Conditioning(text=text) for text in ("a red circle", "a square", "")]))


def test_the_layers_are_keys_and_values_of_attention_to_prompts(
    model: DiffusionModel, projections: Projections
) -> None:
    expected = {
        id(each.weight) for name, each in model.denoiser.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    assert {key for _, key in projections.layers} == expected
    assert {name for name, _ in projections.layers} == {"states"}


@torch.inference_mode()
def test_the_modules_say_the_same_with_what_was_computed_once(model: DiffusionModel, projections: Projections) -> None:
    latents, times, _ = random_rows(model, ROWS)
    prepared = projections.prepared(prompts(model))
    expected = model.predict(latents, times, prepared)
    with projections.replaced(prepared):
        assert torch.equal(model.predict(latents, times, prepared), expected)
    doubled = prepared.each(lambda tensor: tensor * 2 if tensor is not prepared.states else tensor)
    with projections.replaced(doubled):
        assert (model.predict(latents, times, doubled) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_an_encoding_is_prepared_once(model: DiffusionModel, projections: Projections) -> None:
    prepared = projections.prepared(prompts(model))
    assert len(prepared.tensors) == len(prompts(model).tensors) + len(projections.layers)
    assert projections.prepared(prepared) is prepared
    assert model.prepared(prepared) is prepared


def test_a_graph_computes_nothing_of_the_prompts_themselves(model: DiffusionModel) -> None:
    """Once they are prepared, their states no longer count."""
    graph = with_graphs(model, 1)
    latents, times, _ = random_rows(model, ROWS)
    with torch.inference_mode():
        prepared = graph.prepared(prompts(model))
        expected = graph.infer(latents, times, prompts(model))
        without = Encoding({**prepared.tensors, "states": torch.zeros_like(prepared.states)})
        assert torch.equal(graph.infer(latents, times, without), expected)
        torch.testing.assert_close(expected, model.infer(latents, times, prompts(model)), rtol=1e-4, atol=1e-4)


def test_the_sampler_prepares_each_prompt_when_its_trajectory_begins(
    model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    graph = with_graphs(model, 1)
    sampler = Sampler(graph, batch_rows=4)
    assert graph.graph is not None
    prepare, given = graph.graph.prepared, []

    def counted(encoding: Encoding) -> Encoding:
        given.append("projected.0" in encoding.tensors)
        return prepare(encoding)

    graph.graph.prepared = counted
    sampler.run([trajectory_of(latent_seed=seed, steps=5) for seed in range(3)])
    # Two for each trajectory: the prompt and the empty one.
    assert given.count(False) == 6
