"""The denoising loss and its gradient at the prompts' encodings as a graph (`runtime.graphs`), on a CPU in float32.

A row's loss is the mean over its elements of (wanted - output(latents, time, encoding))^2. The gradient is that of the
sum of all rows' losses; rows are independent, so each row's is its own.

The graph is written once for each architecture, and every model's own weights are put into it. What comes out is
compared with what autograd says; a denoiser whose graph cannot be written, or says something else, has none. That
depends on the model, on the limits here and on the versions in the numerics profile alone.
"""

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from unerase_backend.diffusion.denoiser_graph import random_rows
from unerase_backend.diffusion.encoding import GUIDANCE, MASK, Encoding
from unerase_backend.diffusion.gradient_rules import RULES
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.runtime import graphs
from unerase_backend.runtime.graph_rules import CONSTANT
from unerase_backend.runtime.graph_writer import ROWS, Recorder
from unerase_backend.runtime.graphs import Graph

CELLS = 144
"""The most cells of latents: attention over more takes a graph longer than torch."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What denoising losses are computed from."""

    latents: Tensor
    """Noisy latents, (rows, channels, height, width), float32."""
    times: Tensor
    """See `Backbone.predict`, (rows,)."""
    encoding: Encoding
    """A prompt's encoding for each row, without its history."""
    wanted: Tensor
    """What the denoiser should say, of the latents' shape, float32."""

    @property
    def named(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {"latents": self.latents, "times": self.times, "wanted": self.wanted, **self.encoding.tensors}

    @property
    def sought(self) -> tuple[str, ...]:
        """The names of the encoding's tensors that have gradients."""
        tensors = self.encoding.tensors.items()
        return tuple(name for name, each in tensors if each.is_floating_point() and name not in (MASK, GUIDANCE))


class GradientGraph:
    """One model's denoising losses and their gradients in onnxruntime."""

    def __init__(self, graph: Graph, sought: tuple[str, ...]) -> None:
        """Take the graph of `_written`, and the names of the encoding's tensors that have gradients."""
        self._graph, self._sought = graph, sought

    def takes(self, rows: Rows) -> bool:
        """Return whether rows have the shapes and number types for which the graph was written."""
        return self._graph.takes(rows.named)

    def __call__(self, rows: Rows) -> tuple[Tensor, Encoding]:
        """Return each row's loss, (rows,), and the gradient at each tensor of the encoding that has one.

        Raises:
            Exception: onnxruntime's own, for example if memory is short (`exhaustion`).
        """
        losses, *gradients = self._graph.outputs(rows.named)
        return losses, Encoding(dict(zip(self._sought, gradients, strict=True)))


# The graph of each architecture and kind of rows, without weights, or None if there is none; and each denoiser's own,
# for a number of threads as well, as long as the denoiser lives.
_WRITTEN: dict[tuple[object, ...], bytes | None] = {}
_MADE: WeakKeyDictionary[torch.nn.Module, dict[tuple[object, ...], GradientGraph | None]] = WeakKeyDictionary()


def gradient_graph(model: DiffusionModel, threads: int) -> GradientGraph | None:
    """Return the graph of a model whose weights are frozen and stay as they are; None if torch has to compute."""
    made = _MADE.setdefault(model.denoiser, {})
    key = (model.latent_shape, model.device, model.dtype, threads)
    if key not in made:
        made[key] = _made(model, threads) if _may_have_one(model) else None
    return made[key]


@torch.enable_grad()
def by_autograd(model: DiffusionModel, rows: Rows) -> tuple[Tensor, Encoding]:
    """Return what a graph returns, as torch computes it."""
    encoded = dict(rows.encoding.each(Tensor.detach).tensors)
    leaves = {name: encoded[name].requires_grad_() for name in rows.sought}
    output = model.predict(rows.latents, rows.times, Encoding(encoded))
    losses = (rows.wanted - output).square().mean((1, 2, 3))
    gradients = torch.autograd.grad([losses], list(leaves.values()), [torch.ones_like(losses)])
    return losses.detach(), Encoding(dict(zip(leaves, gradients, strict=True)))


def _may_have_one(model: DiffusionModel) -> bool:
    cells = model.latent_shape[1] * model.latent_shape[2]
    return graphs.computes(model.device, model.dtype) and graphs.is_small(model.denoiser) and cells <= CELLS


def _made(model: DiffusionModel, threads: int) -> GradientGraph | None:
    rows = _example(model, ROWS)
    key = (model.architecture, model.resolution, type(model.backbone), graphs.rows_like(rows.named))
    if key not in _WRITTEN:
        _WRITTEN[key] = _written(model, rows)
    if (written := _WRITTEN[key]) is None:
        return None
    try:
        graph = GradientGraph(graphs.open_graph(written, model.denoiser, rows.named, threads), rows.sought)
        difference = _difference(model, graph)
    except Exception as error:
        # Graphs with a wrong number of rows raise some.
        difference = graphs.reason(error)
    if difference:
        _LOG.warning("torch computes the gradients of %s, whose graph is wrong: %s", model.name, difference)
        return None
    return graph


def _written(model: DiffusionModel, rows: Rows) -> bytes | None:
    try:
        weights = model.denoiser.state_dict(keep_vars=True)
        with Recorder(RULES, CONSTANT, rows.named, weights, backwards=True) as recorder:
            losses, gradients = by_autograd(model, rows)
        outputs = {"losses": losses, **{f"gradient.{name}": each for name, each in gradients.tensors.items()}}
        written: bytes = recorder.writer.model(
            rows.named, {name: recorder.value_of(each) for name, each in outputs.items()}
        )
    except Exception as error:
        why = graphs.reason(error)
        _LOG.warning("torch computes the gradients of models like %s, which cannot be written: %s", model.name, why)
        return None
    return written


def _difference(model: DiffusionModel, graph: GradientGraph) -> str:
    """Return how a graph's outputs are unlike those of autograd; empty if both agree."""
    # With more rows than were recorded, in case that number is in the graph.
    rows = _example(model, ROWS + 1)
    (losses, gradients), (expected, right) = graph(rows), by_autograd(model, rows)
    pairs = [(losses, expected), *((gradients.tensors[name], each) for name, each in right.tensors.items())]
    for made, wanted in pairs:
        if made.shape != wanted.shape:
            return f"it gives the shape {tuple(made.shape)}, not {tuple(wanted.shape)}"
        far = float((made - wanted).norm() / wanted.norm().clamp(min=1e-12))
        if not far <= graphs.AGREEMENT:
            return f"it is off by {far:.2g} of the norm"
    return ""


@torch.no_grad()
def _example(model: DiffusionModel, rows: int) -> Rows:
    """Return random rows."""
    draw = torch.Generator().manual_seed(1)
    return Rows(*random_rows(model, rows), torch.randn((rows, *model.latent_shape), generator=draw))
