"""The decoder's graph: which models have one, and that pictures are those of the modules."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion import pictures
from unerase_backend.diffusion.decoder_graph import with_decoder_graph
from unerase_backend.diffusion.denoiser_graph import with_denoiser_graph
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.runtime.onnx_runtime import LARGEST_DECODED

BATCH = 4


@pytest.fixture(scope="module")
def with_its_graph(model: DiffusionModel) -> DiffusionModel:
    made = with_graphs(model, 1)
    assert made.decoder is not None
    return made


def latents(model: DiffusionModel, count: int) -> list[Tensor]:
    return list(torch.randn((count, *model.latent_shape), generator=torch.Generator().manual_seed(count)))


def shown(model: DiffusionModel, of: Sequence[Tensor]) -> Any:
    return np.stack([each for each in pictures.decode(model, of, BATCH) if each is not None]).astype(int)


def test_pictures_are_those_of_the_modules(model: DiffusionModel, with_its_graph: DiffusionModel) -> None:
    given = latents(model, 7)
    difference = np.abs(shown(with_its_graph, given) - shown(model, given))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_picture_has_the_same_bits_whatever_shares_its_call(with_its_graph: DiffusionModel) -> None:
    given = latents(with_its_graph, BATCH)
    expected = shown(with_its_graph, given)
    for place, each in enumerate(given):
        assert np.array_equal(shown(with_its_graph, [each])[0], expected[place])
        assert np.array_equal(shown(with_its_graph, [given[0], each])[1], expected[place])


def test_a_picture_that_is_not_finite_is_none_and_changes_no_other(with_its_graph: DiffusionModel) -> None:
    good, bad = latents(with_its_graph, 2)
    bad[0, 0, 0] = torch.nan
    made = pictures.decode(with_its_graph, [good, bad], BATCH)
    assert made[1] is None
    assert made[0] is not None
    assert np.array_equal(made[0], shown(with_its_graph, [good])[0])


def test_latents_of_another_size_are_decoded_by_the_modules(
    model: DiffusionModel, with_its_graph: DiffusionModel
) -> None:
    wide = torch.randn((1, *model.latent_shape[:2], 2 * model.latent_shape[2]))
    with torch.inference_mode():
        assert torch.equal(with_its_graph.decode(wide), model.decode(wide))


def test_a_second_model_of_the_architecture_has_its_own_weights(
    model: DiffusionModel, catalogue: Catalogue, with_its_graph: DiffusionModel
) -> None:
    other = load_model(catalogue, "testbed/never", torch.device("cpu"), torch.float32)
    for each in other.vae.decoder.parameters():
        each.mul_(0.9)
    given = latents(model, 2)
    assert np.abs(shown(with_graphs(other, 1), given) - shown(other, given)).max() <= 1
    assert np.abs(shown(with_its_graph, given) - shown(other, given)).max() > 1


def test_large_pictures_have_none(with_its_graph: DiffusionModel) -> None:
    large = replace(with_its_graph, decoder=None, resolution=2 * LARGEST_DECODED)
    assert with_decoder_graph(large, 1).decoder is None


def test_a_model_whose_denoiser_has_no_graph_has_none_of_its_decoder(model: DiffusionModel) -> None:
    assert with_decoder_graph(model, 1).decoder is None


def test_a_decoder_whose_graph_says_something_else_is_computed_by_its_modules(
    model: DiffusionModel, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(type(model.vae)):  # type: ignore[misc]
        def decode(self, latents: Tensor, *arguments: Any, **named: Any) -> Any:
            return (super().decode(latents, *arguments, **named)[0] * len(latents),)

    odd = Odd.from_config(model.vae.config)
    odd.load_state_dict(model.vae.state_dict())
    changed = replace(model, backbone=model.backbone.with_modules({"vae": odd.eval().requires_grad_(False)}))
    with caplog.at_level(logging.WARNING):
        assert with_decoder_graph(with_denoiser_graph(changed, 1), 1).decoder is None
    assert "torch computes the decoder of testbed/reference, which has no graph: off by" in caplog.text
