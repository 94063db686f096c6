"""What stands for torch's operations in graphs, against those operations."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from unerase_backend.runtime.traced_operations import TracedOperations


def agrees(call: Callable[[], Tensor | tuple[Tensor, ...]]) -> None:
    expected = call()
    with TracedOperations():
        made = call()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def drawn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    width=st.integers(1, 5),
    outputs=st.integers(1, 6),
    biased=st.booleans(),
    chunks=st.integers(1, 4),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_linear_layers_and_their_chunks(
    leading: list[int], width: int, outputs: int, biased: bool, chunks: int, last: bool
) -> None:
    layer = nn.Linear(width, outputs, bias=biased).requires_grad_(False)
    x = drawn(*leading, width)
    agrees(lambda: layer(x))
    agrees(lambda: layer(x).chunk(chunks, dim=-1 if last else 0))


def test_chunks_of_an_earlier_output_are_its_own() -> None:
    """Only the last layer's output is known to come from it."""
    first, second = (nn.Linear(4, 6).requires_grad_(False) for _ in range(2))
    x = drawn(2, 3, 4)

    def call() -> tuple[Tensor, ...]:
        one, other = first(x), second(x)
        return (*one.chunk(2, -1), *other.chunk(2, dim=2), *(other + 0).chunk(2, -1))

    agrees(call)


@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    cells=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    scaled=st.booleans(),
    shifted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_group_norms(rows: int, groups: int, each: int, cells: list[int], scaled: bool, shifted: bool) -> None:
    channels = groups * each
    weight, bias = (drawn(channels, seed=seed) if given else None for seed, given in enumerate((scaled, shifted)))
    x = drawn(rows, channels, *cells, 2)
    agrees(lambda: functional.group_norm(x, groups, weight, bias, 1e-3))
    agrees(lambda: functional.group_norm(x, groups, weight=weight, bias=bias))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("masked", "causal"), [(False, False), (True, False), (False, True)])
def test_attention(scale: float | None, masked: bool, causal: bool) -> None:
    query, key, value = (drawn(2, 3, 4, 8, seed=seed) for seed in range(3))
    mask = drawn(4, 4) > 0 if masked else None
    if mask is not None:
        mask[:, 0] = True
    agrees(
        lambda: functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale
        )
    )


def test_fewer_heads_of_keys_than_of_queries() -> None:
    query, key = drawn(2, 4, 5, 8), drawn(2, 2, 5, 8)
    agrees(lambda: functional.scaled_dot_product_attention(query, key, key, enable_gqa=True))
