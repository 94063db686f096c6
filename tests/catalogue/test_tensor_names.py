"""Today's names of tensors: names of today stay, older ones lead to them, and shapes fit only where numbers do."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from unerase_backend.catalogue.tensor_names import current_name, fits

PREFIXES = {"unet": ["unet."], "vae": ["vae."], "text_encoder": ["text_encoder.", "text_model."]}


@pytest.mark.parametrize(
    ("part", "build"),
    [
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("text_encoder", lambda: CLIPTextModel(CLIPTextConfig(num_hidden_layers=2))),
    ],
)
def test_names_of_today_stay_and_prefixes_go(part: str, build: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        names = list(build().state_dict())
    for name in names:
        assert current_name(part, name) == name
        for prefix in ["module.", "_orig_mod.", *PREFIXES[part], "module." + "".join(PREFIXES[part])]:
            assert current_name(part, prefix + name) == name


def test_what_is_computed_today_is_left_out() -> None:
    for prefix in ("", "text_model.", "text_encoder.text_model."):
        assert current_name("text_encoder", f"{prefix}embeddings.position_ids") is None
    # Another part has no such tensor, so that one would be unknown.
    assert current_name("unet", "embeddings.position_ids") == "embeddings.position_ids"


@given(st.sampled_from(sorted(PREFIXES)), st.text(alphabet="abcdefkquvy_.0", max_size=40))
def test_a_current_name_is_its_own(part: str, name: str) -> None:
    once = current_name(part, name)
    assert once is None or current_name(part, once) == once


SHAPES = st.lists(st.integers(1, 3), max_size=5).map(tuple)


@given(SHAPES, SHAPES)
def test_shapes_that_fit_hold_the_same_numbers_in_the_same_order(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert fits(one, other) == fits(other, one)
    if fits(one, other):
        numbers = torch.arange(torch.Size(one).numel())
        assert torch.equal(numbers.view(one).view(other).flatten(), numbers)
    # Only a layer's matrix may gain or lose axes: a vector, or a wider convolution, is another layer's.
    if fits(one, other) and one != other:
        assert {len(one), len(other)} == {2, 4}
        assert one[:2] == other[:2]
