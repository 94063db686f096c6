"""The denoiser as a graph (`runtime.graphs`), for calls without gradients on a CPU in float32.

It is written once for each architecture, and every model's own weights are put into it. What comes out is compared
with what the modules say; a denoiser that cannot be written, or whose graph says something else, is computed by its
modules. What layers make of encodings alone is no part of the graph (`projections`).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.encoding import GUIDANCE, MASK, Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.projections import Projections
from unerase_backend.runtime import graphs
from unerase_backend.runtime.graph_writer import ROWS
from unerase_backend.runtime.graphs import Graph

_LOG = logging.getLogger(__name__)

# By architecture and the inputs of a row.
_WRITTEN: dict[tuple[object, ...], bytes] = {}


class DenoiserGraph:
    """One model's denoiser in onnxruntime."""

    def __init__(self, graph: Graph, projections: Projections) -> None:
        """Take the graph of the denoiser's call, and what is not in it."""
        self._graph = graph
        self.prepared: Callable[[Encoding], Encoding] = projections.prepared
        """See `DiffusionModel.prepared`."""
        self.timed: Callable[[float], object] = _ignore
        """Called with the seconds of each call."""

    def takes(self, latents: Tensor, times: Tensor, encoding: Encoding) -> bool:
        """Return whether rows of these shapes and number types are those that the graph was written for."""
        return self._graph.takes(_given(latents, times, encoding))

    def __call__(self, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the denoiser's output for a prepared encoding; see `Backbone.predict`."""
        begin = time.perf_counter()
        output = self._graph(_given(latents, times, encoding))
        self.timed(time.perf_counter() - begin)
        return output


def with_denoiser_graph(model: DiffusionModel, threads: int) -> DiffusionModel:
    """Return a model with a graph of its denoiser; the model itself where that is computed by its modules."""
    if not (graphs.computes(model.device, model.dtype) and graphs.is_small(model.denoiser)):
        return model
    projections = _projections(model)
    given, other = (
        _given(latents, times, projections.prepared(encoding))
        for latents, times, encoding in (random_rows(model, rows) for rows in (ROWS, ROWS + 1))
    )
    # The resolution may be among the constants.
    key = (model.architecture, model.resolution, type(model.backbone), graphs.rows_like(given))

    def call(latents: Tensor, times: Tensor, *encoded: Tensor) -> Tensor:
        return model.predict(latents, times, Encoding(dict(zip(list(given)[2:], encoded, strict=True))))

    def recorded(latents: Tensor, times: Tensor, *encoded: Tensor) -> Tensor:
        with projections.replaced(Encoding(dict(zip(list(given)[2:], encoded, strict=True)))):
            return call(latents, times, *encoded)

    def write() -> bytes:
        return graphs.written(recorded, model.denoiser, given)

    def opened(content: bytes) -> Graph:
        return graphs.open_graph(content, model.denoiser, given, threads)

    graph = graphs.shared(_WRITTEN, key, write, opened, call, other)
    if isinstance(graph, str):
        _LOG.warning("torch computes the denoiser of %s, which has no graph: %s", model.name, graph)
        return model
    return replace(model, graph=DenoiserGraph(graph, projections))


@torch.no_grad()
def random_rows(model: DiffusionModel, rows: int) -> tuple[Tensor, Tensor, Encoding]:
    """Return latents, times and encodings of rows, all of them different, random and the same each time.

    What is no input of a graph would be the same for all rows, so that it shows in the comparison.
    """
    draw = torch.Generator().manual_seed(rows)
    latents = torch.randn((rows, *model.latent_shape), generator=draw)
    times = model.schedule.times_at(torch.randint(model.schedule.training_timesteps, (rows,), generator=draw))
    encoding = Encoding.stack([empty_encoding(model)] * rows).clone()
    for name, tensor in encoding.tensors.items():
        if name == MASK:
            # The first token always counts.
            tensor[:, 1:] = torch.randint(2, tensor[:, 1:].shape, generator=draw).to(tensor)
        elif tensor.is_floating_point() and name != GUIDANCE:
            tensor.add_((float(tensor.std()) or 1.0) * torch.randn(tensor.shape, generator=draw))
    return latents, times, encoding


@torch.inference_mode()
def _projections(model: DiffusionModel) -> Projections:
    latents, times, encoding = random_rows(model, graphs.LEAST)
    return Projections.found(lambda: model.predict(latents, times, encoding), encoding)


def _given(latents: Tensor, times: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    return {"latents": latents, "times": times, **encoding.tensors}


def _ignore(seconds: float) -> None:
    del seconds
