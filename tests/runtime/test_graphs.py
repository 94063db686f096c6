"""Graphs against the modules that they were written from."""

import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unerase_backend.runtime import graphs
from unerase_backend.runtime.graph_writer import ROWS, UnknownOperationError
from unerase_backend.runtime.graphs import Graph
from unerase_backend.runtime.onnx_runtime import LARGE

CPU = torch.device("cpu")


class Network(nn.Module):
    """Convolutions with norms of both kinds, attention, and weights that are equal where they begin."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.batch, self.group = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        for each in (self.batch.running_mean, self.batch.weight, self.group.bias):
            assert each is not None
            nn.init.normal_(each)

    def forward(self, pixels: Tensor, shift: Tensor) -> Tensor:
        shown = nn.functional.silu(self.group(self.batch(self.first(pixels))))
        tokens = self.norm(self.second(shown).flatten(2).transpose(1, 2) + shift[:, None, None])
        features: Tensor = self.linear(nn.functional.scaled_dot_product_attention(tokens, tokens, tokens))
        return features


def network(seed: int) -> Network:
    return Network(seed).eval().requires_grad_(False)


def inputs(rows: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"pixels": torch.randn((rows, 3, 8, 8), generator=draw), "shift": torch.randn(rows, generator=draw)}


def written_of(module: nn.Module) -> bytes:
    return graphs.written(module, module, inputs(ROWS))


def graph_of(module: Network, content: bytes | None = None, threads: int = 1) -> Graph:
    return graphs.open_graph(content or written_of(module), module, inputs(ROWS), threads)


@pytest.fixture(scope="module")
def written() -> bytes:
    return written_of(network(1))


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_graph_says_what_its_module_says(written: bytes, rows: int, threads: int) -> None:
    module, given = network(1), inputs(rows, seed=rows)
    torch.testing.assert_close(graph_of(module, written, threads)(given), module(*given.values()), rtol=1e-5, atol=1e-5)


def test_a_graph_of_one_module_takes_the_weights_of_another(written: bytes) -> None:
    other, given = network(2), inputs(3)
    torch.testing.assert_close(graph_of(other, written)(given), other(*given.values()), rtol=1e-5, atol=1e-5)
    assert (graph_of(network(1), written)(given) - other(*given.values())).abs().max() > 0.1


def test_weights_that_are_equal_in_the_written_module_are_apart_in_another() -> None:
    even = network(1)
    for each in even.parameters():
        each.fill_(1.0)
    other, given = network(2), inputs(3)
    written = written_of(even)
    torch.testing.assert_close(graph_of(other, written)(given), other(*given.values()), rtol=1e-5, atol=1e-5)


def test_writing_changes_nothing() -> None:
    module = network(1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    expected = module(*inputs(2).values())
    written_of(module)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(each.training for each in module.modules())
    assert torch.equal(module(*inputs(2).values()), expected)


def test_a_row_has_the_same_bits_whatever_shares_its_call(written: bytes) -> None:
    graph, many = graph_of(network(1), written), inputs(12)
    expected = graph(many)

    @given(order=st.lists(st.integers(0, 11), min_size=1, max_size=12))
    @settings(max_examples=30, deadline=None)
    def law(order: list[int]) -> None:
        found = graph({name: each[order] for name, each in many.items()})
        assert torch.equal(found, expected[order])

    law()


@pytest.mark.parametrize(
    "change",
    [
        lambda given: {**given, "shift": given["shift"].double()},
        lambda given: {**given, "pixels": given["pixels"][:, :, :4]},
        lambda given: {"pixels": given["pixels"]},
        lambda given: {**given, "more": given["shift"]},
    ],
)
def test_a_graph_takes_only_inputs_like_the_traced_ones(
    written: bytes, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    graph = graph_of(network(1), written)
    assert graph.takes(inputs(5))
    assert not graph.takes(change(inputs(5)))


def test_what_cannot_be_written_says_so() -> None:
    class Odd(nn.Module):
        def forward(self, pixels: Tensor, shift: Tensor) -> Tensor:
            return torch.linalg.pinv(pixels)

    class Branching(nn.Module):
        def forward(self, pixels: Tensor, shift: Tensor) -> Tensor:
            return pixels if shift.mean(0) else -pixels

    for module, operation in ((Odd(), "linalg"), (Branching(), "_local_scalar_dense")):
        with pytest.raises(UnknownOperationError, match=f"no rule writes aten.*{operation}"):
            written_of(module)


def test_what_does_not_agree_is_found() -> None:
    values = torch.randn(4, 5)
    assert graphs.difference(values + 1e-6, values) == ""
    assert "off by" in graphs.difference(values + 1e-2, values)
    assert "of the shape (3, 5), not (4, 5)" in graphs.difference(values[:3], values)
    assert graphs.difference(values * torch.nan, values)


def test_a_graph_that_fails_or_differs_is_none_and_other_errors_are_raised() -> None:
    module, given = network(1), inputs(3)
    assert isinstance(graphs.checked(lambda: graph_of(module), module, given), Graph)
    assert graphs.checked(lambda: graph_of(network(2)), module, given).startswith("off by")  # type: ignore[union-attr]

    def fails(error: Exception) -> Callable[[], Graph]:
        def build() -> Graph:
            raise error

        return build

    assert graphs.checked(fails(ValueError("no such operation\nwith details")), module, given) == "no such operation"
    for error in (
        MemoryError("full"),
        OSError("full"),
        ImportError("onnx"),
        RuntimeError("can't allocate memory"),
        RuntimeError("pthread_create failed, error code: 11"),
    ):
        with pytest.raises(type(error), match=str(error)):
            graphs.checked(fails(error), module, given)


def test_a_module_with_other_constants_has_a_graph_of_its_own() -> None:
    """As it would alone, whatever was written before."""

    class Shifted(Network):
        constant = 0.0

        def forward(self, pixels: Tensor, shift: Tensor) -> Tensor:
            return super().forward(pixels, shift) + self.constant

    kept: dict[object, bytes] = {}
    for constant in (1.0, 1.0, 2.0):
        module = Shifted(1).eval().requires_grad_(False)
        module.constant = constant
        opened = partial(graph_of, module)
        graph = graphs.shared(kept, "key", partial(written_of, module), opened, module, inputs(3))
        assert isinstance(graph, Graph)
        torch.testing.assert_close(graph(inputs(4)), module(**inputs(4)), rtol=1e-5, atol=1e-5)


def test_what_is_written_is_not_held() -> None:
    """Writing takes the memory of a call, not that of all its tensors."""
    living: list[weakref.ref[Tensor]] = []
    most = 0

    class Deep(nn.Module):
        def forward(self, pixels: Tensor, shift: Tensor) -> Tensor:
            nonlocal most
            for _ in range(20):
                pixels = pixels * 1.5
                living.append(weakref.ref(pixels))
                most = max(most, sum(each() is not None for each in living))
            return pixels

    graphs.written(Deep(), Deep(), inputs(ROWS))
    assert most <= 3


def test_only_small_modules_on_a_cpu_in_float32_have_graphs() -> None:
    assert graphs.computes(CPU, torch.float32)
    assert not graphs.computes(CPU, torch.bfloat16)
    assert not graphs.computes(torch.device("cuda"), torch.float32)
    with torch.device("meta"):
        large = nn.Linear(LARGE, 1, bias=False)
    assert not graphs.is_small(large)
    assert graphs.is_small(network(1))


@pytest.mark.parametrize(
    ("depends", "alike"),
    [
        (lambda order: torch.zeros(len(order)), True),
        (lambda order: torch.full((len(order),), len(order) * 1e-7), False),
        (lambda order: torch.arange(len(order)) * 1e-7, False),
    ],
)
def test_rows_are_alike_if_neither_place_nor_number_shows(depends: Callable[[Tensor], Tensor], alike: bool) -> None:
    values = torch.rand(4)
    assert graphs.rows_alike(lambda order: values[order] + depends(order), 4, 12) is alike
