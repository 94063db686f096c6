"""The denoiser as a graph (`runtime.graphs`), for calls without gradients on a CPU in float32.

It is traced once for each architecture, and every model's own weights are put into it. What comes out is compared with
what the modules say; a denoiser that cannot be traced, or whose graph says something else, is computed by its modules.
So are all of families without `Backbone.has_graph`. What layers make of encodings alone is no part of the graph
(`projections`).
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from unerase_backend.diffusion.backbone import Backbone
from unerase_backend.diffusion.conditioning import empty_encoding
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.projections import Projections
from unerase_backend.runtime import graphs
from unerase_backend.runtime.graphs import Graph

_LOG = logging.getLogger(__name__)

# By architecture and the inputs of a row.
_TRACED: dict[tuple[object, ...], bytes] = {}


class DenoiserGraph:
    """One model's denoiser in onnxruntime."""

    def __init__(self, graph: Graph, projections: Projections) -> None:
        """Take the graph of a `_Called`, and what is not in it."""
        self._graph = graph
        self.prepared: Callable[[Encoding], Encoding] = projections.prepared
        """See `DiffusionModel.prepared`."""
        self.timed: Callable[[float], object] = _ignore
        """Called with the seconds of each call."""

    def takes(self, latents: Tensor, times: Tensor, encoding: Encoding) -> bool:
        """Return whether rows of these shapes and number types are those that the graph was traced for."""
        return self._graph.takes(_given(latents, times, encoding))

    def __call__(self, latents: Tensor, times: Tensor, encoding: Encoding) -> Tensor:
        """Return the denoiser's output for a prepared encoding; see `Backbone.predict`."""
        begin = time.perf_counter()
        output = self._graph(_given(latents, times, encoding))
        self.timed(time.perf_counter() - begin)
        return output


def with_denoiser_graph(model: DiffusionModel, threads: int) -> DiffusionModel:
    """Return a model with a graph of its denoiser; the model itself where that is computed by its modules."""
    traces = model.backbone.has_graph and graphs.computes(model.device, model.dtype)
    if not (traces and graphs.is_small(model.denoiser)):
        return model
    latents, times, encoding = random_rows(model, graphs.TRACED_ROWS)
    with torch.inference_mode():
        projections = Projections.found(lambda: model.predict(latents, times, encoding), encoding)
    given, other = (
        _given(latents, times, projections.prepared(encoding))
        for latents, times, encoding in (random_rows(model, graphs.TRACED_ROWS + more) for more in range(2))
    )
    called = _Called(model.backbone, tuple(given)[2:], projections)
    key = (model.architecture, type(model.backbone), graphs.rows_like(given))

    def build() -> Graph:
        if key not in _TRACED:
            _TRACED[key] = graphs.trace(called, given)
        return graphs.open_graph(_TRACED[key], called, given, threads)

    graph = graphs.checked(build, called, other)
    if isinstance(graph, str):
        _LOG.warning("torch computes the denoiser of %s, which has no graph: %s", model.name, graph)
        return model
    return replace(model, graph=DenoiserGraph(graph, projections))


@torch.no_grad()
def random_rows(model: DiffusionModel, rows: int) -> tuple[Tensor, Tensor, Encoding]:
    """Return latents and times of rows, random and the same each time, and as many encodings of the empty prompt."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn((rows, *model.latent_shape), generator=draw)
    times = model.schedule.times_at(torch.randint(model.schedule.training_timesteps, (rows,), generator=draw))
    return latents, times, Encoding.stack([empty_encoding(model)] * rows).clone()


class _Called(torch.nn.Module):
    """The call of a denoiser, with tensors alone for its inputs: latents, times, and those of a prepared encoding."""

    def __init__(self, backbone: Backbone, names: tuple[str, ...], projections: Projections) -> None:
        super().__init__()
        self.denoiser, self._predict = backbone.denoiser, backbone.predict
        self._names, self._projections = names, projections

    def forward(self, latents: Tensor, times: Tensor, *encoded: Tensor) -> Tensor:
        encoding = Encoding(dict(zip(self._names, encoded, strict=True)))
        # The modules compute everything, so that they say whether the graph is right.
        with self._projections.replaced(encoding) if torch._C._get_tracing_state() else nullcontext():
            return self._predict(self.denoiser, latents, times, encoding)


def _given(latents: Tensor, times: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    return {"latents": latents, "times": times, **encoding.tensors}


def _ignore(seconds: float) -> None:
    del seconds
