"""Decodes latents to pictures and encodes pictures, always in VAE batches of one shape."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unerase_backend.diffusion.model import DiffusionModel

Picture = NDArray[np.uint8]


@torch.inference_mode()
def decode(model: DiffusionModel, latents: Sequence[Tensor], batch: int) -> list[Picture | None]:
    """Return the picture of each of the latents, (height, width, 3) in RGB, as StableDiffusionPipeline makes it.

    None stands for a picture with values that are not finite.
    """
    pictures: list[Picture | None] = []
    for chunk, count in _filled(latents, batch):
        scaled = model.backbone.to_autoencoder(chunk.to(model.device))
        values = model.decode(scaled)
        finite = torch.isfinite(values).flatten(1).all(1).tolist()
        shown = (values * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        rounded = np.nan_to_num(shown * 255).round().astype(np.uint8)
        pictures += [rounded[row] if finite[row] else None for row in range(count)]
    return pictures


@torch.inference_mode()
def encode(model: DiffusionModel, pictures: Sequence[Picture], batch: int) -> Tensor:
    """Return the latents of pictures, the mode of the VAE's distribution scaled for the denoiser.

    Shape (pictures, channels, height, width), float32 on the CPU.
    """
    values = [torch.tensor(picture).permute(2, 0, 1).float() / 127.5 - 1 for picture in pictures]
    encoded = [
        model.backbone.to_distribution(chunk.to(model.device))[:count].float().cpu()
        for chunk, count in _filled(values, batch)
    ]
    return model.backbone.to_latents(torch.cat(encoded))


def _filled(rows: Sequence[Tensor], batch: int) -> list[tuple[Tensor, int]]:
    chunks = [list(rows[start : start + batch]) for start in range(0, len(rows), batch)]
    # A row that is not finite does not affect the others; the batch is filled up with its first row.
    return [(torch.stack(chunk + [chunk[0]] * (batch - len(chunk))), len(chunk)) for chunk in chunks]
