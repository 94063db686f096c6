"""The graph of the denoising loss's gradient, against autograd."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.tiny_models import TinyModel, saved
from unerase_backend.attack import denoising_loss
from unerase_backend.attack.denoising_loss import LEAST_STEPS, graph_for, losses_and_gradient
from unerase_backend.diffusion import gradient_graph as of_gradients
from unerase_backend.diffusion.conditioning import empty_encoding, encode_tokens, tokenise_learned
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.gradient_graph import GradientGraph, Rows, gradient_graph
from unerase_backend.diffusion.gradient_rules import RULES
from unerase_backend.diffusion.model import DiffusionModel

WRITTEN = ["stable-diffusion-1", "stable-diffusion-2"]
UNWRITTEN = "pixart-sigma"


@pytest.fixture(scope="module", params=WRITTEN)
def tiny_unet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A small pipeline whose gradients have a graph; that of Stable Diffusion 2 projects by matrices."""
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph is written or made yet."""
    monkeypatch.setattr(of_gradients, "_WRITTEN", {})
    monkeypatch.setattr(of_gradients, "_MADE", type(of_gradients._MADE)())


def rows_of(model: DiffusionModel, count: int, seed: int = 1) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    latents, wanted = torch.randn((2, count, *model.latent_shape), generator=draw)
    times = model.schedule.times_at(torch.randint(model.schedule.training_timesteps, (count,), generator=draw))
    states = empty_encoding(model).states
    states = states + states.std() * torch.randn((count, *states.shape), generator=draw)
    return Rows(latents, times, Encoding({"states": states}), wanted)


def some(rows: Rows, chosen: Sequence[int]) -> Rows:
    places = torch.tensor(chosen)
    return Rows(rows.latents[places], rows.times[places], rows.encoding[places], rows.wanted[places])


def autograd(model: DiffusionModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """Each row's loss and gradient in a call of its own."""
    losses, gradients = [], []
    for row in range(len(rows.latents)):
        states = rows.encoding.states[row : row + 1].clone().requires_grad_()
        output = model.denoiser(rows.latents[row : row + 1], rows.times[row], encoder_hidden_states=states).sample
        loss = (rows.wanted[row] - output[0]).square().mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(states.grad[0])
    return torch.stack(losses), torch.stack(gradients)


def assert_alike(graph: GradientGraph, model: DiffusionModel, count: int) -> None:
    rows = rows_of(model, count)
    (losses, at), (expected, gradients) = graph(rows), autograd(model, rows)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    assert (at.states - gradients).flatten(1).norm(dim=1).max() <= 1e-5 * gradients.flatten(1).norm(dim=1).max()
    assert set(at.tensors) == {"states"}


def assert_rows_independent(graph: GradientGraph, model: DiffusionModel) -> None:
    rows = rows_of(model, 12)
    losses, at = graph(rows)
    for chosen in ([7], [3, 2], [11, 0, 5, 6], [*range(11, -1, -1)], [4] * 5 + [*range(12)] * 2):
        part, at_part = graph(some(rows, chosen))
        assert torch.equal(part, losses[chosen])
        assert torch.equal(at_part.states, at.states[chosen])


@pytest.mark.parametrize("count", [1, 5, 26])
def test_the_testbeds_losses_and_gradients_are_those_of_autograd(model: DiffusionModel, count: int) -> None:
    graph = gradient_graph(model, 1)
    assert graph is not None
    assert_alike(graph, model, count)


def test_small_unets_losses_and_gradients_are_those_of_autograd(tiny_unet: TinyModel) -> None:
    graph = gradient_graph(tiny_unet.model, 1)
    assert graph is not None
    assert_alike(graph, tiny_unet.model, 3)


def test_a_rows_bits_depend_on_no_other_row(model: DiffusionModel, tiny_unet: TinyModel) -> None:
    """Nor on its place and on the number of rows."""
    for each in (model, tiny_unet.model):
        graph = gradient_graph(each, 1)
        assert graph is not None
        assert_rows_independent(graph, each)


def test_models_of_one_architecture_share_what_is_written(
    tiny_unet: TinyModel, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own weights, also those that the backward pass has mirrored or transposed."""
    weights = {
        name: torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2
        for name, weight in tiny_unet.model.denoiser.state_dict().items()
    }
    other = tiny_unet.load({"unet": tiny_unet.put(weights)})
    assert gradient_graph(tiny_unet.model, 1) is not None
    monkeypatch.setattr(of_gradients, "Recorder", None)
    graph = gradient_graph(other, 1)
    assert graph is not None
    assert_alike(graph, other, 3)
    stepped = replace(other, name="stepped by another")
    assert gradient_graph(stepped, 1) is graph


def learning(model: DiffusionModel, graph: GradientGraph | None) -> tuple[Tensor, Tensor]:
    """Losses and the gradient at a learned word, as an attack asks for them."""
    draw = torch.Generator().manual_seed(5)
    width = sum(reader.width for reader in model.backbone.readers)
    word = (0.1 * torch.randn((2, width), generator=draw)).requires_grad_()
    encoding = encode_tokens(model, [tokenise_learned(model, "a picture of <w>", "<w>", 2)] * 4, [word] * 4)
    noisy, wanted = torch.randn((2, 4, *model.latent_shape), generator=draw)
    times = model.schedule.times_at(torch.tensor([100, 300, 500, 700]))
    return losses_and_gradient(model, graph, word, encoding, (noisy, times, wanted))


def test_gradients_reach_what_the_encodings_follow_from(model: DiffusionModel) -> None:
    graph = graph_for(model, LEAST_STEPS)
    assert graph is not None
    for made, expected in zip(learning(model, graph), learning(model, None), strict=True):
        assert (made - expected).norm() <= 1e-5 * expected.norm()
        assert not torch.equal(made, expected)


def test_what_has_no_rule_is_left_to_torch(tmp_path: Any, forgotten: None, caplog: pytest.LogCaptureFixture) -> None:
    """With one warning for the architecture."""
    model = saved(UNWRITTEN, tmp_path).model
    with caplog.at_level(logging.WARNING):
        assert gradient_graph(model, 1) is None
        assert gradient_graph(model, 2) is None
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        f"torch computes the gradients of models like {model.name}, which cannot be written"
    ]
    losses, gradient = learning(model, graph_for(model, LEAST_STEPS))
    assert len(losses) == 4
    assert gradient.abs().max() > 0


def test_a_graph_that_says_something_else_is_not_used(
    model: DiffusionModel, forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    operation = torch.ops.aten.silu_backward.default
    right = RULES[operation]
    monkeypatch.setitem(RULES, operation, lambda *given: right(*given) * 1.01)
    with caplog.at_level(logging.WARNING):
        assert gradient_graph(model, 1) is None
    assert "off by" in caplog.text


def test_short_memory_is_no_reason_to_compute_otherwise(
    model: DiffusionModel, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*given: Any, **named: Any) -> None:
        raise MemoryError

    for name in ("Recorder", "_difference"):
        with monkeypatch.context() as changed:
            changed.setattr(of_gradients, name, short)
            with pytest.raises(MemoryError):
                gradient_graph(model, 1)
    assert gradient_graph(model, 1) is not None


def test_neither_few_steps_nor_large_latents_have_a_graph(
    model: DiffusionModel, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_gradients, "_made", lambda *_: SimpleNamespace())
    assert graph_for(model, LEAST_STEPS - 1) is None
    assert graph_for(model, LEAST_STEPS) is not None
    large = replace(model, resolution=2 * model.resolution)
    assert large.latent_shape[1] * large.latent_shape[2] > of_gradients.CELLS
    assert denoising_loss.graph_for(large, LEAST_STEPS) is None
