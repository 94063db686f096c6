"""The transformer of the second world: rectified flow in latents of 4 x 8 x 8, conditioned on two frozen text towers.

Rectified flow (Liu, Gong, Liu 2022, arXiv 2209.03003) with the joint-attention transformer and the timesteps of Stable
Diffusion 3 (Esser et al. 2024, arXiv 2403.03206). With noise e and a level sigma from 0 (the picture) to 1 (noise
alone), x = (1 - sigma) x_0 + sigma e, and the loss of a sample is

    mean((v_model(x, 1000 sigma, caption) - (e - x_0))^2),  sigma = 1 / (1 + exp(-n)),  n standard normal

Patches of 2 x 2, so 16 image tokens beside 24 text tokens. Five joint blocks, 64 wide, 4 heads. The text tokens are the
next-to-last hidden states of both towers, side by side and padded with zeros to 128; both projected texts, side by
side, modulate every block. There are no zero tokens in place of the third tower, which is absent: `max_sequence_length`
is 0 in training, and must be 0 wherever the models are sampled.

The schedule is not shifted (shift 1). A shift spends more steps on the noisy levels, as pictures of many latents need,
since noise hides them less (equation 23 there). By that rule latents of 8 x 8 need none, and shifts of 0.5, 2 and 3
made no difference to the judges (240 pictures of an early model, ten steps).

Trained as `averaged` says: 1.5e-3 after the warm-up, batches of 64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from unerase_backend.testbed import clip
from unerase_backend.testbed.averaged import Training, train_averaged
from unerase_backend.testbed.flow.recipe import SECOND_TEXT_WIDTH
from unerase_backend.testbed.world import Subject

STEPS = 4000
BATCH = 64
RATE = 1.5e-3
TIMESTEPS = 1000
SHIFT = 1.0

PATCH = 2
LAYERS = 5
HEADS = 4
WIDTH = 64
TEXT_WIDTH = 128
POOLED_WIDTH = clip.WIDTH + SECOND_TEXT_WIDTH
TEXT_LENGTH = 0
"""`max_sequence_length` of the pipeline: how many zero tokens stand for the absent third text tower."""

TextEncoders = Sequence[CLIPTextModelWithProjection]


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the transformer reads of N prompts: text tokens (N, 24, 128) and projected texts (N, 112)."""

    states: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.states)

    def __getitem__(self, rows: slice | Tensor) -> "Encoding":
        """Return the encoding of some rows."""
        return Encoding(self.states[rows], self.pooled[rows])

    def expand(self, count: int) -> "Encoding":
        """Return the encoding of one prompt `count` times."""
        return Encoding(self.states.expand(count, -1, -1), self.pooled.expand(count, -1))

    def beside(self, other: "Encoding") -> "Encoding":
        """Return the rows of this encoding, then those of the other."""
        return Encoding(torch.cat([self.states, other.states]), torch.cat([self.pooled, other.pooled]))


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the pipeline's scheduler: Euler's steps on evenly spaced levels."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=SHIFT)


def untrained(seed: int) -> SD3Transformer2DModel:
    """Return the transformer before training."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=PATCH,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        pos_embed_max_size=8 // PATCH,
    )


@torch.no_grad()
def encode_prompts(encoders: TextEncoders, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Encoding:
    """Return the encoding of prompts, as Stable Diffusion 3's pipeline makes it with `max_sequence_length` 0."""
    ids = clip.token_ids(tokenizer, prompts)
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    padded = functional.pad(states, (0, TEXT_WIDTH - states.shape[-1]))
    return Encoding(padded, torch.cat([output.text_embeds for output in outputs], dim=-1))


def predict(transformer: SD3Transformer2DModel, latents: Tensor, timesteps: Tensor, encoding: Encoding) -> Tensor:
    """Return the velocity (N, 4, 8, 8) of latents at timesteps 1000 sigma: one, or (N,)."""
    velocity: Tensor = transformer(
        latents, encoding.states, encoding.pooled, timesteps.expand(len(latents)), return_dict=False
    )[0]
    return velocity


def velocity_error(
    transformer: SD3Transformer2DModel, clean: Tensor, encoding: Encoding, draws: torch.Generator
) -> Tensor:
    """Return the training loss of a batch of scaled latents (N, 4, 8, 8) under their encodings."""
    noise = torch.randn(clean.shape, generator=draws)
    sigma = torch.sigmoid(torch.randn(len(clean), generator=draws))
    level = sigma[:, None, None, None]
    velocity = predict(transformer, (1 - level) * clean + level * noise, TIMESTEPS * sigma, encoding)
    return functional.mse_loss(velocity, noise - clean)


def train(
    latents: Tensor,
    subjects: Sequence[Subject],
    encoders: TextEncoders,
    tokenizer: CLIPTokenizer,
    seed: int,
    steps: int = STEPS,
    report: Callable[[str], None] = print,
) -> SD3Transformer2DModel:
    """Train on scaled latents (N, 4, 8, 8) and return the averaged weights; every step draws new captions."""
    transformer = untrained(seed)
    draws = torch.Generator().manual_seed(seed)

    def loss_of(chosen: NDArray[np.int64], captions: list[str]) -> Tensor:
        return velocity_error(transformer, latents[chosen], encode_prompts(encoders, tokenizer, captions), draws)

    train_averaged(transformer, subjects, loss_of, Training("transformer", steps, BATCH, RATE, seed), report)
    return transformer.eval().requires_grad_(False)
