"""Calls a judge's network with pictures, several at a time; a row's bits do not depend on what shares its batch.

A small network on a CPU is a graph (`runtime.graphs`), written when it first sees square pixel values of a size. Its
calls have as many rows as they need, in parts of a full call, where every bit of a row is as in a full call; that is
found out with random pixel values when so many rows are first needed. All other networks are called in one shape.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from unerase_backend.runtime import graphs
from unerase_backend.runtime.graph_writer import ROWS
from unerase_backend.runtime.graphs import Graph

_LOG = logging.getLogger(__name__)
_PIXELS = "pixel_values"

PARTS = 8
"""A call of a graph has so many equal parts of a full one, or fewer."""
# How much brighter than noise a picture is that is compared, too.
_BRIGHT = 10


class Batches:
    """One network of a judge."""

    def __init__(self, network: torch.nn.Module, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        """Take a frozen network from pixel values, (rows, 3, height, width), to features, (rows, features).

        Its graph has as many threads as torch has in this thread.
        """
        self._network, self._device, self._dtype, self._batch_size = network, device, dtype, batch_size
        # By the shape of a picture's pixel values; None where the network itself is called.
        self._graphs: dict[torch.Size, Graph | None] = {}
        self._alike: dict[tuple[torch.Size, int], bool] = {}

    @torch.inference_mode()
    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """Return the features of pixel values, (values, features), float32 on the CPU."""
        found: list[Tensor] = []
        for start in range(0, len(values), self._batch_size):
            chunk = list(values[start : start + self._batch_size])
            graph = self._graph(chunk[0])
            rows = self._batch_size if graph is None else self._rows(graph, chunk)
            filled = torch.stack(chunk + [chunk[0]] * (rows - len(chunk)))
            features = self._called(filled) if graph is None else graph({_PIXELS: filled})
            found.append(features[: len(chunk)])
        return torch.cat(found)

    def _called(self, values: Tensor) -> Tensor:
        features: Tensor = self._network(values.to(self._device, self._dtype))
        return features.float().cpu()

    def _graph(self, value: Tensor) -> Graph | None:
        if value.shape not in self._graphs:
            # Where the processor keeps the sides' ratio there would be a graph for each.
            has_one = value.shape[-1] == value.shape[-2] and graphs.computes(self._device, self._dtype)
            small = has_one and graphs.is_small(self._network)
            self._graphs[value.shape] = self._written(value.shape) if small else None
        return self._graphs[value.shape]

    def _written(self, shape: torch.Size) -> Graph | None:
        some, full, one = ({_PIXELS: _random(shape, rows)} for rows in (ROWS, self._batch_size, 1))
        bright = {_PIXELS: one[_PIXELS] * _BRIGHT}
        threads = torch.get_num_threads()

        def build() -> Graph:
            written = graphs.written(self._network, self._network, some)
            return graphs.open_graph(written, self._network, some, threads)

        graph = graphs.checked(build, self._network, full, one, bright)
        if isinstance(graph, str):
            _LOG.warning("torch computes a judge, which has no graph: %s", graph)
            return None
        return graph

    def _rows(self, graph: Graph, chunk: Sequence[Tensor]) -> int:
        part = -(-self._batch_size // PARTS)
        rows = min(max(-(-len(chunk) // part) * part, graphs.LEAST), self._batch_size)
        if rows == self._batch_size:
            return rows
        key = chunk[0].shape, rows
        if key not in self._alike:
            pixels = _random(chunk[0].shape, rows)
            self._alike[key] = graphs.rows_alike(lambda order: graph({_PIXELS: pixels[order]}), rows, self._batch_size)
        return rows if self._alike[key] else self._batch_size


def _random(shape: torch.Size, rows: int) -> Tensor:
    return torch.randn((rows, *shape), generator=torch.Generator().manual_seed(0))
