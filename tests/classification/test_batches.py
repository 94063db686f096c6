"""A judge's network in batches: the same features, whoever shares the call."""

import logging

import pytest
import torch
from torch import Tensor, nn

from unerase_backend.classification.batches import Batches
from unerase_backend.runtime import graphs

CPU = torch.device("cpu")
BATCH = 16


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.calls: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls.append(len(pixels))
        features: Tensor = self.norm(self.convolution(pixels)).relu().mean((2, 3))
        return features


class Counting(Network):
    def forward(self, pixels: Tensor) -> Tensor:
        # The number of written rows would be in the graph.
        return super().forward(pixels) * float(len(pixels))


class Branching(Network):
    def forward(self, pixels: Tensor) -> Tensor:
        features = super().forward(pixels)
        return features if pixels.abs().max() < 10 else features * 2


@pytest.fixture
def network() -> Network:
    return Network().eval().requires_grad_(False)


def pictures(count: int, side: int = 8) -> list[Tensor]:
    return list(torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(count)))


def test_features_are_those_of_the_network(network: Network) -> None:
    batches = Batches(network, CPU, torch.float32, BATCH)
    for count in (1, 5, BATCH, 2 * BATCH + 3):
        shown = pictures(count)
        torch.testing.assert_close(batches(shown), network(torch.stack(shown)), rtol=1e-5, atol=1e-6)


def test_features_depend_on_the_picture_alone(network: Network) -> None:
    batches, shown = Batches(network, CPU, torch.float32, BATCH), pictures(BATCH + 5)
    together = batches(shown)
    assert all(torch.equal(batches([each])[0], row) for each, row in zip(shown, together, strict=True))
    assert torch.equal(batches(shown[::-1]), together.flip(0))


def test_each_shape_of_pictures_has_a_graph_of_its_own(network: Network) -> None:
    batches = Batches(network, CPU, torch.float32, BATCH)
    for side in (8, 12, 8):
        shown = pictures(3, side)
        torch.testing.assert_close(batches(shown), network(torch.stack(shown)), rtol=1e-5, atol=1e-6)


def test_the_network_itself_is_called_in_one_shape(network: Network) -> None:
    in_half = Batches(network.bfloat16(), CPU, torch.bfloat16, BATCH)
    assert in_half(pictures(BATCH + 1)).dtype == torch.float32
    assert network.calls == [BATCH, BATCH]


def test_where_the_graph_says_something_else_the_network_is_called(caplog: pytest.LogCaptureFixture) -> None:
    network = Counting().eval().requires_grad_(False)
    batches, shown = Batches(network, CPU, torch.float32, BATCH), pictures(BATCH)
    with caplog.at_level(logging.WARNING):
        found = batches(shown)
    assert "torch computes a judge, which has no graph: off by" in caplog.text
    assert torch.equal(found, network(torch.stack(shown)))


@pytest.mark.parametrize("batch", [1, 2, 3, BATCH])
def test_a_network_that_cannot_be_written_is_called_itself(batch: int) -> None:
    network = Branching().eval().requires_grad_(False)
    batches = Batches(network, CPU, torch.float32, batch)
    for scale in (1, 100):
        shown = [each * scale for each in pictures(batch)]
        assert torch.equal(batches(shown), network(torch.stack(shown)))


@pytest.mark.parametrize("batch", [1, 2, 3, 33])
def test_any_size_of_a_batch_will_do(network: Network, batch: int) -> None:
    batches, shown = Batches(network, CPU, torch.float32, batch), pictures(7)
    expected = network(torch.stack(shown))
    torch.testing.assert_close(batches(shown), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.cat([batches([each]) for each in shown]), batches(shown))


def test_what_is_not_the_networks_fault_is_raised(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("no space left on the device")

    with monkeypatch.context() as broken:
        broken.setattr(graphs, "written", fail)
        batches = Batches(network, CPU, torch.float32, BATCH)
        with pytest.raises(OSError, match="no space"):
            batches(pictures(1))
    assert len(batches(pictures(1))) == 1
    assert network.calls[-1] == 1, "only the comparison called the network itself"


def test_pixel_values_that_are_not_square_have_no_graph(network: Network) -> None:
    shown = [torch.rand(3, 8, 12)] * 3
    assert torch.equal(
        Batches(network, CPU, torch.float32, BATCH)(shown)[0], network(torch.stack(shown * 6)[:BATCH])[0]
    )


def test_where_rows_are_not_alike_calls_are_full(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "rows_alike", lambda *_: False)
    called: list[int] = []
    batches = Batches(network, CPU, torch.float32, BATCH)
    monkeypatch.setattr(graphs.Graph, "__call__", _counted(called))
    batches(pictures(3))
    assert called[-1] == BATCH


def _counted(called: list[int]) -> object:
    original = graphs.Graph.__call__

    def call(graph: graphs.Graph, given: dict[str, Tensor]) -> Tensor:
        called.append(len(given["pixel_values"]))
        return original(graph, given)

    return call
