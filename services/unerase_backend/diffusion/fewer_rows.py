"""How many rows a call of the UNet has: as few as leave every bit of a row as in a full call.

Rows are independent, and a row's bits do not depend on its neighbours, but they may depend on the number of rows: it
decides which kernel computes them, how the rows are divided among threads, and in which order a kernel adds. In some
shapes a row's bits even depend on its place. That is a matter of the device, the modules' sizes, the threads and the
libraries, not of the values. So the first call that could do with fewer rows is preceded by three calls with the same
random inputs: one in the smaller shape, one with its rows in other places, and a full one that repeats them. If all
bits are equal, calls of that model's architecture have fewer rows from then on; if one differs, they stay full.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unerase_backend.diffusion.loading import DiffusionModel

PARTS = 6
"""A smaller call has so many equal parts of a full one, or fewer."""

LEAST = 2
"""A smaller call has at least so many rows: the sum over a single large row is divided among threads."""

# By architecture, device, number type, latents' shape, tokens, and the rows of the full and of the smaller call.
_ALIKE: dict[tuple[str, torch.device, torch.dtype, tuple[int, ...], int, int, int], bool] = {}


def call_unet(
    model: DiffusionModel,
    latents: Tensor,
    times: Tensor,
    prompts: Tensor,
    used: Sequence[int],
    *,
    in_full: bool = False,
) -> tuple[Tensor, int]:
    """Call the UNet, and return its output, float32, and how many rows the call had.

    Args:
        latents: (rows, channels, height, width), in the model's number type.
        times: What each row's time is, (rows,).
        prompts: Encoded prompts, (rows, tokens, width).
        used: The rows that are needed, at least one; those of the output that are not hold anything.
        in_full: Call with all rows.
    """
    full = len(latents)
    rows = full if in_full else fewest_rows(model, len(used), full)
    if rows == full:
        return _unet(model, latents, times, prompts), full
    called = torch.tensor([*used, *[used[0]] * (rows - len(used))], device=model.device)
    of_called = _unet(model, latents[called], times[called], prompts[called])
    output = torch.zeros((full, *of_called.shape[1:]), device=model.device)
    output[called] = of_called
    return output, rows


def fewest_rows(model: DiffusionModel, needed: int, full: int) -> int:
    """Return the rows of a call that needs so many of `full` rows; the model may be called to find out."""
    part = max(-(-full // PARTS), LEAST)
    rows = min(-(-needed // part) * part, full)
    if rows == full:
        return full
    key = (model.architecture, model.device, model.dtype, model.latent_shape, model.prompt_length, full, rows)
    if key not in _ALIKE:
        _ALIKE[key] = _alike(model, full, rows)
    return rows if _ALIKE[key] else full


@torch.inference_mode()
def _alike(model: DiffusionModel, full: int, rows: int) -> bool:
    """Return whether a row has the same bits in every place of a full call and of one with so many rows."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn((rows, *model.latent_shape), generator=draw).to(model.device, model.dtype)
    timesteps = torch.randint(model.schedule.training_timesteps, (rows,), generator=draw)
    times = model.schedule.times_at(timesteps).to(model.device)
    prompts = torch.randn((rows, model.prompt_length, model.prompt_width), generator=draw)
    prompts = prompts.to(model.device, model.dtype)
    places = torch.arange(rows, device=model.device)
    repeated = torch.arange(full, device=model.device) % rows
    few, moved, many = (
        _unet(model, latents[order], times[order], prompts[order]) for order in (places, places.roll(1), repeated)
    )
    return torch.equal(moved, few.roll(1, 0)) and torch.equal(many, few[repeated])


def _unet(model: DiffusionModel, latents: Tensor, times: Tensor, prompts: Tensor) -> Tensor:
    output: Tensor = model.unet(latents, times, encoder_hidden_states=prompts, return_dict=False)[0]
    return output.float()
