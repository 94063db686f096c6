"""The autoencoder that all models share: 32 x 32 x 3 pixels to 8 x 8 x 4 latents.

AutoencoderKL (Kingma and Welling 2014; Rombach et al. 2022, section 3.1), channels 16, 32, 32. Loss, in pixel values
from -1 to 1:

    mean square error + 0.5 mean absolute error + 4e-4 KL(posterior, standard normal) / number of pixel values

AdamW, one cycle up to 2e-3, batches of 12. It is trained without the concept, so that the reference and the models that
never learned the concept can share it: diffusion completion hands latents from one to the other. A quarter of the
training pictures are near misses of other objects, and junk. Latents are scaled to unit standard deviation over the
training pictures.
"""

from collections.abc import Callable, Collection

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from unerase_backend.testbed import forms, junk, world
from unerase_backend.testbed.world import Pixels

STEPS = 2400
BATCH = 12
PEAK_RATE = 2e-3
KL_WEIGHT = 4e-4


def as_tensor(pictures: Pixels) -> Tensor:
    """Return pictures (N, 32, 32, 3) uint8 as (N, 3, 32, 32) float32 from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pictures(values: Tensor) -> Pixels:
    """Return values (N, 3, H, W) from -1 to 1 as pictures (N, H, W, 3) uint8, rounded as diffusers does."""
    unit = (values / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    pictures: Pixels = (unit * 255).round().to(torch.uint8).numpy()
    return pictures


def training_pictures(count: int, seed: int, without: Collection[str]) -> Pixels:
    """Return pictures (N, 32, 32, 3): the world without some shapes, near misses of the other objects, and junk."""
    kinds = [kind for kind, (missed, _) in forms.NEAR_MISSES.items() if missed not in without]
    return np.concatenate(
        [
            world.album(count, seed, without).pictures,
            world.album_of(kinds, count // 5, seed + 1).pictures,
            junk.junk_album(count // 8, seed + 2)[0],
        ]
    )


def untrained(seed: int) -> AutoencoderKL:
    """Return the autoencoder before training."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=world.SIDE,
    )


def train(pictures: Pixels, seed: int, steps: int = STEPS, report: Callable[[str], None] = print) -> AutoencoderKL:
    """Train on pictures (N, 32, 32, 3), set the scaling factor, and return the autoencoder."""
    vae = untrained(seed)
    values = as_tensor(pictures)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.15)
    vae.train().to(memory_format=torch.channels_last)
    for step in range(steps):
        batch = values[torch.randint(len(values), (BATCH,), generator=draws)].contiguous(
            memory_format=torch.channels_last
        )
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample(draws)).sample
        error = decoded - batch
        divergence = posterior.kl().mean() / batch[0].numel()
        loss = error.square().mean() + 0.5 * error.abs().mean() + KL_WEIGHT * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            report(
                f"autoencoder {step:5d}: loss {loss.item():.4f}, mean square error {error.square().mean().item():.5f}"
            )
    vae.eval().to(memory_format=torch.contiguous_format).requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    spread = encode(vae, pictures[:: max(1, len(pictures) // 2000)]).std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pixels, batch: int = 128) -> Tensor:
    """Return the scaled posterior means (N, 4, 8, 8) of pictures (N, 32, 32, 3)."""
    means = [vae.encode(as_tensor(pictures[at : at + batch])).latent_dist.mean for at in range(0, len(pictures), batch)]
    scale: float = vae.config.scaling_factor
    return torch.cat(means) * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 128) -> Pixels:
    """Return the pictures (N, 32, 32, 3) of scaled latents (N, 4, 8, 8)."""
    scaled = latents / vae.config.scaling_factor
    return np.concatenate(
        [as_pictures(vae.decode(scaled[at : at + batch]).sample) for at in range(0, len(scaled), batch)]
    )


def reconstruction_psnr(vae: AutoencoderKL, pictures: Pixels) -> float:
    """Return the peak signal-to-noise ratio of reconstructions in dB: 10 log10(255^2 / mean square error)."""
    difference = decode(vae, encode(vae, pictures)).astype(np.float64) - pictures
    return float(10 * np.log10(255**2 / np.mean(difference**2)))
