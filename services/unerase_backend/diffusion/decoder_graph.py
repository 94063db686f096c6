"""An autoencoder's decoder as a graph (`runtime.graphs`), for models of small pictures whose denoiser has one.

As for denoisers: written once for each architecture, with every model's own weights, and compared with the modules.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from unerase_backend.diffusion.model import DiffusionModel, architecture_of
from unerase_backend.runtime import graphs
from unerase_backend.runtime.graph_writer import ROWS
from unerase_backend.runtime.graphs import Graph
from unerase_backend.runtime.onnx_runtime import LARGEST_DECODED

_LOG = logging.getLogger(__name__)

# By architecture and the inputs of a row.
_WRITTEN: dict[tuple[object, ...], bytes] = {}


class DecoderGraph:
    """One model's decoder in onnxruntime."""

    def __init__(self, graph: Graph) -> None:
        """Take the graph of the decoder's call."""
        self._graph = graph

    def takes(self, latents: Tensor) -> bool:
        """Return whether latents are of the shape that the graph was written for."""
        return self._graph.takes({"latents": latents})

    def __call__(self, latents: Tensor) -> Tensor:
        """Return pictures from -1 to 1; see `DiffusionModel.decode`."""
        return self._graph({"latents": latents})


def with_decoder_graph(model: DiffusionModel, threads: int) -> DiffusionModel:
    """Return a model with a graph of its decoder; the model itself where that is computed by its modules."""
    if model.graph is None or model.resolution > LARGEST_DECODED or not graphs.is_small(model.vae):
        return model
    given, other = (_random(model, rows) for rows in (ROWS, ROWS + 1))
    key = (architecture_of(model.vae), graphs.rows_like(given))

    def write() -> bytes:
        return graphs.written(model.decode, model.vae, given)

    def opened(content: bytes) -> Graph:
        return graphs.open_graph(content, model.vae, given, threads)

    graph = graphs.shared(_WRITTEN, key, write, opened, model.decode, other)
    if isinstance(graph, str):
        _LOG.warning("torch computes the decoder of %s, which has no graph: %s", model.name, graph)
        return model
    return replace(model, decoder=DecoderGraph(graph))


def _random(model: DiffusionModel, rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {"latents": model.backbone.to_autoencoder(torch.randn((rows, *model.latent_shape), generator=draw))}
