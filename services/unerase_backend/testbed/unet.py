"""The UNet: it predicts the noise in latents of 4 x 8 x 8, conditioned on the frozen text tower.

Denoising diffusion (Ho, Jain, Abbeel 2020; Rombach et al. 2022), noise prediction, 1,000 steps, scaled-linear betas
from 0.00085 to 0.012. Channels 32 at 8 x 8 and 64 at 4 x 4, attention (width 64, 2 heads) at 4 x 4 alone. With x_t =
sqrt(a_t) x_0 + sqrt(1 - a_t) e, the loss of a sample is

    min(snr, 5) / snr * mean((e - e_model(x_t, t, caption))^2),  snr = a_t / (1 - a_t)  (min-SNR, Hang et al. 2023)

Trained as `averaged` says: 1.5e-3 after the warm-up, batches of 32.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from unerase_backend.testbed.averaged import Training, train_averaged
from unerase_backend.testbed.clip import WIDTH, token_ids
from unerase_backend.testbed.world import Subject

STEPS = 5000
BATCH = 32
RATE = 1.5e-3
SNR_CAP = 5.0


def scheduler() -> DDIMScheduler:
    """Return the pipeline's scheduler, configured as Stable Diffusion's."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def untrained(seed: int) -> UNet2DConditionModel:
    """Return the UNet before training."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        # diffusers reads this as the number of heads.
        attention_head_dim=2,
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_prompts(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Return the conditioning (N, 24, 64) of prompts: last hidden states, padding included, as in Stable Diffusion."""
    states: Tensor = text_encoder(token_ids(tokenizer, prompts)).last_hidden_state
    return states


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """Return x_t of latents (N, 4, 8, 8) at their timesteps (N,); `alphas` are the cumulative alphas (1000,)."""
    kept = alphas[timesteps][:, None, None, None]
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def train(
    latents: Tensor,
    subjects: Sequence[Subject],
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    seed: int,
    steps: int = STEPS,
    report: Callable[[str], None] = print,
) -> UNet2DConditionModel:
    """Train on scaled latents (N, 4, 8, 8) and return the averaged weights; every step draws new captions."""
    unet = untrained(seed)
    draws = torch.Generator().manual_seed(seed)
    alphas = scheduler().alphas_cumprod
    ratio = alphas / (1 - alphas)
    weight = ratio.clamp(max=SNR_CAP) / ratio

    def loss_of(chosen: NDArray[np.int64], captions: list[str]) -> Tensor:
        conditioning = encode_prompts(text_encoder, tokenizer, captions)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=draws)
        timesteps = torch.randint(1000, (BATCH,), generator=draws)
        noisy = add_noise(clean, noise, timesteps, alphas).contiguous(memory_format=torch.channels_last)
        error = (unet(noisy, timesteps, conditioning).sample - noise).square().mean((1, 2, 3))
        loss: Tensor = (weight[timesteps] * error).mean()
        return loss

    unet.to(memory_format=torch.channels_last)
    train_averaged(unet, subjects, loss_of, Training("unet", steps, BATCH, RATE, seed), report)
    return unet.eval().to(memory_format=torch.contiguous_format).requires_grad_(False)
