"""The law of the batch with guards: a trajectory's bits do not depend on what shares its batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusion.guards.conftest import GuardsOf
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import UNGUARDED
from unerase_backend.diffusion.sampler import Finished, Sampler


def test_any_company_and_order_gives_the_same_bits(
    sampler: Sampler, guards_of: GuardsOf, trajectory_of: Callable[..., Trajectory], tmp_path: Path
) -> None:
    channels = sampler.model.denoiser.config.block_out_channels[-1]
    save_file({"direction": torch.arange(1.0, channels + 1)}, tmp_path / "direction.safetensors")
    guarded = [
        UNGUARDED,
        guards_of({"kind": "negative-prompt", "text": "a hourglass"}),
        guards_of({"kind": "prompt-filter", "words": ["hourglass"]}),
        guards_of({"kind": "prompt-filter", "words": ["hourglass"], "replacement": "heart"}),
        guards_of({"kind": "safe-latent-diffusion", "text": "a hourglass", "warmup_steps": 1}),
        guards_of({"kind": "safree", "concepts": ["a hourglass"]}),
        guards_of({"kind": "steering", "module": "mid_block", "direction": "direction.safetensors"}),
    ]
    mixed = [
        (trajectory_of(latent_seed=seed, steps=2 + seed % 3, eta=0.5 * (seed % 2), guidance_scale=scale), guards)
        for seed, (guards, scale) in enumerate((each, scale) for each in guarded for scale in (3.0, 1.0))
    ]
    alone = [sampler.run([trajectory], given=[Given(guards=guards)])[0] for trajectory, guards in mixed]

    @given(order=st.permutations(range(len(mixed))))
    @settings(max_examples=6, deadline=None)
    def law(order: list[int]) -> None:
        together = sampler.run([mixed[i][0] for i in order], given=[Given(guards=mixed[i][1]) for i in order])
        assert all(_same(finished, alone[i]) for i, finished in zip(order, together, strict=True))

    law()


def _same(one: Finished, other: Finished) -> bool:
    alike = one.withheld == other.withheld and np.array_equal(one.latents.numpy(), other.latents.numpy())
    return alike and (one.picture is other.picture is None or np.array_equal(one.picture, other.picture))
