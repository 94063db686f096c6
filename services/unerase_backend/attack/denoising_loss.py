"""The denoising loss of rows, and its gradient at what their encodings follow from.

Where a unit takes many steps, the model's gradient graph computes both up to the encodings, if it has one; from there
on to the variable, and everything without a graph, autograd.
"""

import torch
from torch import Tensor

from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.gradient_graph import GradientGraph, Rows, gradient_graph
from unerase_backend.diffusion.model import DiffusionModel

LEAST_STEPS = 100
"""Steps from which a unit has a graph made. That takes as long as twenty to fifty steps save."""


def graph_for(model: DiffusionModel, steps: int) -> GradientGraph | None:
    """Return what computes the gradients of a unit that asks for so many steps; None if that is torch.

    Call it in the thread that computes: it may make the graph.
    """
    return gradient_graph(model, torch.get_num_threads()) if steps >= LEAST_STEPS else None


def losses_and_gradient(
    model: DiffusionModel, graph: GradientGraph | None, variable: Tensor, encoding: Encoding, rows: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return each row's loss, (rows,), and the gradient of their sum at the variable, of its shape.

    A row's loss is the mean over its elements of (wanted - output(noisy, time, encoding))^2.

    Args:
        model: The model, whose weights are frozen.
        graph: Of the model (`graph_for`).
        variable: What the encoding follows from.
        encoding: A prompt's encoding for each row.
        rows: noisy and wanted latents, (rows, channels, height, width), with the times, (rows,), between them.
    """
    noisy, times, wanted = rows
    noisy = noisy.to(model.device, model.dtype)
    times, wanted = times.to(model.device), wanted.to(model.device)
    given = Rows(noisy, times, encoding.each(Tensor.detach), wanted)
    if graph is None or not graph.takes(given):
        losses = (wanted - model.predict(noisy, times, encoding).float()).square().mean((1, 2, 3))
        # Rows are independent, so the gradient of the sum is each row's own.
        (gradient,) = torch.autograd.grad(losses.sum(), [variable])
        return losses.detach(), gradient
    losses, at_encoding = graph(given)
    following = [name for name in at_encoding.tensors if encoding.tensors[name].requires_grad]
    (gradient,) = torch.autograd.grad(
        [encoding.tensors[name] for name in following], [variable], [at_encoding.tensors[name] for name in following]
    )
    return losses, gradient
