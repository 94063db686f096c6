"""The model's own training error on given pictures, from which the likelihood is estimated.

For a picture with latents x_0 (mode of the VAE's distribution, scaled), timestep t and conditioning c:

    x_t = a x_0 + s noise, with the signal a and the spread s at t (`path`)
    error = mean over the latents' elements of (target - output(x_t, t, c))^2

The target is what the model was trained to predict: the noise, velocity or flow (`prediction`). The errors of a model
that is stepped by another's schedule are turned into those of the other's prediction, so that both can be compared.

The noise depends only on the seed, the picture's digest and t. It is the same for every model and conditioning, so that
differences between them are paired.
"""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unerase_backend.diffusion import pictures as autoencoding
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.fewer_rows import fewest_rows
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.prediction import error_ratio, training_target
from unerase_backend.runtime.seeds import derive_seed


def measure_denoising(
    model: DiffusionModel,
    pictures: Sequence[Picture],
    digests: Sequence[str],
    conditionings: Sequence[Encoding],
    timesteps: Sequence[int],
    noise_seed: int,
    *,
    batch_rows: int,
    decode_batch: int,
) -> Generator[tuple[int, int], None, NDArray[np.float64]]:
    """Return the errors, (pictures, conditionings, timesteps); yield after each call of the denoiser how many of its
    rows were in use, and how many it had.

    `conditionings` are encoded prompts. Every call has `batch_rows` rows, the last one padded, or
    fewer with the same bits (`fewer_rows`).
    """
    latents = autoencoding.encode(model, pictures, decode_batch)
    shape = (len(pictures), len(conditionings), len(timesteps))
    rows = [(i, j, k) for i in range(shape[0]) for k in range(shape[2]) for j in range(shape[1])]
    errors = np.full(shape, np.nan)
    prompts = Encoding.stack([model.prepared(each) for each in conditionings])
    for start in range(0, len(rows), batch_rows):
        chunk = rows[start : start + batch_rows]
        called = fewest_rows(model, len(chunk), batch_rows, prompts)
        filled = chunk + [chunk[0]] * (called - len(chunk))
        noise = torch.stack([_noise(model, noise_seed, digests[i], timesteps[k]) for i, _, k in filled])
        at = torch.tensor([timesteps[k] for _, _, k in filled])
        clean, level = latents[[i for i, _, _ in filled]], model.schedule.level_at(at)
        noised = level.noised(clean, noise)
        target = training_target(model.prediction, clean, noise, level)
        with torch.inference_mode():
            predicted = model.infer(
                noised.to(model.device, model.dtype),
                model.schedule.times_at(at).to(model.device),
                prompts[[j for _, j, _ in filled]],
            )
            squares = (target - predicted.float().cpu()).double().square().flatten(1).mean(1)
            exact = model.schedule.level_at(at, torch.float64)
            squares *= error_ratio(model.prediction, model.schedule.measured, exact)
        for row, value in zip(chunk, squares.tolist(), strict=False):
            errors[row] = value
        yield len(chunk), called
    return errors


def _noise(model: DiffusionModel, noise_seed: int, digest: str, timestep: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(noise_seed, digest, timestep))
    return torch.randn(model.latent_shape, generator=generator)
