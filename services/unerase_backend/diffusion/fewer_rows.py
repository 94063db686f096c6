"""How many rows a call of the denoiser has: as few as leave every bit of a row as in a full call.

Rows are independent, and a row's bits do not depend on its neighbours, but they may depend on the number of rows: it
decides which kernel computes them, how the rows are divided among threads, and in which order a kernel adds. In some
shapes a row's bits even depend on its place. That is a matter of the device, the modules' sizes, the threads and the
libraries, not of the values. So the first call that could do with fewer rows is preceded by three calls with the same
random inputs: one in the smaller shape, one with its rows in other places, and a full one that repeats them. If all
bits are equal, calls of that model's architecture have fewer rows from then on; if one differs, they stay full.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.runtime import graphs

PARTS = 6
"""A smaller call has so many equal parts of a full one, or fewer."""

# By architecture, whether there is a graph, device, number type, latents' and prompts' shapes, and the rows of the full
# and of the smaller call.
_ALIKE: dict[tuple[object, ...], bool] = {}


def call_denoiser(
    model: DiffusionModel,
    latents: Tensor,
    times: Tensor,
    prompts: Encoding,
    used: Sequence[int],
    *,
    in_full: bool = False,
) -> tuple[Tensor, int]:
    """Call the denoiser, and return its output, float32, and how many rows the call had.

    Args:
        latents: (rows, channels, height, width), in the model's number type.
        times: (rows,).
        prompts: Encoded prompts, one for each row.
        used: The rows that are needed, at least one; those of the output that are not hold anything.
        in_full: Call with all rows.
    """
    full = len(latents)
    rows = full if in_full else fewest_rows(model, len(used), full, prompts)
    if rows == full:
        return model.infer(latents, times, prompts).float(), full
    called = torch.tensor([*used, *[used[0]] * (rows - len(used))], device=model.device)
    of_called = model.infer(latents[called], times[called], prompts[called]).float()
    output = torch.zeros((full, *of_called.shape[1:]), device=model.device)
    output[called] = of_called
    return output, rows


def fewest_rows(model: DiffusionModel, needed: int, full: int, prompts: Encoding) -> int:
    """Return the rows of a call that needs so many of `full` rows; the model may be called to find out.

    `prompts` are encoded prompts like those of the call.
    """
    part = max(-(-full // PARTS), graphs.LEAST)
    rows = min(-(-needed // part) * part, full)
    if rows == full:
        return full
    kind = (model.architecture, model.graph is not None, model.device, model.dtype)
    key = (*kind, model.latent_shape, _tokens(prompts), full, rows)
    if key not in _ALIKE:
        _ALIKE[key] = _alike(model, full, rows, prompts)
    return rows if _ALIKE[key] else full


@torch.inference_mode()
def _alike(model: DiffusionModel, full: int, rows: int, like: Encoding) -> bool:
    """Return whether a row has the same bits in every place of a full call and of one with so many rows."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn((rows, *model.latent_shape), generator=draw).to(model.device, model.dtype)
    times = model.schedule.times_at(torch.randint(model.schedule.training_timesteps, (rows,), generator=draw))
    times = times.to(model.device)
    prompts = like[[row % len(like) for row in range(rows)]].each(partial(_random, draw))
    return graphs.rows_alike(
        lambda order: model.infer(latents[order], times[order], prompts[order]).float(), rows, full
    )


def _random(draw: torch.Generator, tensor: Tensor) -> Tensor:
    """Return random numbers in the place of a tensor's; masks and ids stay."""
    return torch.randn(tensor.shape, generator=draw).to(tensor) if tensor.is_floating_point() else tensor


def _tokens(prompts: Encoding) -> tuple[int, ...]:
    return tuple(size for name in sorted(prompts.tensors) for size in prompts.tensors[name].shape[1:])
