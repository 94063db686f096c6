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

AdamW (0.9, 0.99), weight decay 0.01, 1.5e-3 after 100 steps of warm-up, then cosine; batches of 64; exponential moving
average 0.998 of the weights. One caption in ten is empty, which is what classifier-free guidance (Ho and Salimans 2022)
needs; three in ten have filler words, so that pictures stay intact when a prompt holds meaningless tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from unerase_backend.testbed import clip, language
from unerase_backend.testbed.flow.recipe import SECOND_TEXT_WIDTH
from unerase_backend.testbed.schedule import warm_cosine
from unerase_backend.testbed.world import Subject

STEPS = 4000
BATCH = 64
RATE = 1.5e-3
WARM_UP = 100
AVERAGE = 0.998
EMPTY_SHARE = 0.1
FILLER_SHARE = 0.3
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
    averaged = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    rng = np.random.default_rng(seed)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = warm_cosine(optimizer, WARM_UP, steps)
    transformer.train()
    running = 0.0
    for step in range(steps):
        chosen = rng.integers(len(latents), size=BATCH)
        captions = [
            "" if rng.random() < EMPTY_SHARE else language.caption(subjects[i], rng, bool(rng.random() < FILLER_SHARE))
            for i in chosen
        ]
        loss = velocity_error(transformer, latents[chosen], encode_prompts(encoders, tokenizer, captions), draws)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in transformer.state_dict().items():
                averaged[name].lerp_(tensor, 1 - decay)
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if step % 200 == 0 or step == steps - 1:
            report(f"transformer {step:5d}: loss {running:.4f}")
    transformer.load_state_dict(averaged)
    return transformer.eval().requires_grad_(False)
