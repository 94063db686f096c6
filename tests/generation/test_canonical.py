"""Keys: the same for the same result, different for every field that matters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unerase.internal.v1alpha1.trajectories_pb2 import (
    ClassifierGuidance,
    Conditioning,
    Inpainting,
    LearnedPrompt,
    Resumption,
    TokenIds,
    Trajectory,
)
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.generation.canonical import canonical_trajectory, trajectory_key

TrajectoryOf = Callable[..., Trajectory]
ONES, ZEROS = to_message(torch.ones(1, 2)), to_message(torch.zeros(1, 2))


def test_every_field_that_matters_changes_the_key(trajectory_of: TrajectoryOf) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"guidance_scale": 3.5},
        {"latent_seed": 2},
        {"noise_seed": 3},
        {"steps": 4},
        {"eta": 1.17},
        {"variance_scale": 1.02},
        {"stop_step": 2},
        {"resumption": Resumption(latents=ONES, step=1)},
        {"resumption": Resumption(latents=ONES, step=2)},
        {"resumption": Resumption(latents=ZEROS, step=1)},
        {"resumption": Resumption(latents=to_message(torch.ones(2, 1)), step=1)},
        {"resumption": Resumption(picture_digest="a", step=1)},
        {"resumption": Resumption(picture_digest="b", step=1)},
        {"resumption": Resumption(picture_digest="a", step=1), "latent_seed": 2},
        {"resumption": Resumption(picture_digest="a", step=1), "estimate": True},
        {"estimate": True},
        {"estimate": True, "stop_step": 2},
        {"conditioning": Conditioning(text="")},
        {"conditioning": Conditioning(text="a picture of a heart")},
        {"conditioning": Conditioning(token_ids=TokenIds())},
        {"conditioning": Conditioning(token_ids=TokenIds(ids=[1, 23]))},
        {"conditioning": Conditioning(token_ids=TokenIds(ids=[12, 3]))},
        {"conditioning": Conditioning(embedding=ONES)},
        {"conditioning": Conditioning(learned=LearnedPrompt(text="a b", placeholder="b", embedding=ONES))},
        {"conditioning": Conditioning(learned=LearnedPrompt(text="a b", placeholder="a", embedding=ONES))},
        {"conditioning": Conditioning(learned=LearnedPrompt(text="a b", placeholder="b", embedding=ZEROS))},
        {"inpainting": Inpainting(picture_digest="a", mask_share=0.5)},
        {"inpainting": Inpainting(picture_digest="b", mask_share=0.5)},
        {"inpainting": Inpainting(picture_digest="a", mask_share=0.75)},
        {"classifier_guidance": ClassifierGuidance(classifier_digest="a", scale=0.5)},
        {"classifier_guidance": ClassifierGuidance(classifier_digest="b", scale=0.5)},
        {"classifier_guidance": ClassifierGuidance(classifier_digest="a", scale=0.75)},
        {
            "inpainting": Inpainting(picture_digest="a", mask_share=0.5),
            "classifier_guidance": ClassifierGuidance(classifier_digest="a", scale=0.5),
        },
    ]
    encoded = {canonical_trajectory(trajectory_of(**{"eta": 1.0} | change)) for change in changes}
    assert len(encoded) == len(changes)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_seed": 3},
        {"variance_scale": 1.04},
        {"eta": -0.0},
        {"stop_step": 3},
    ],
)
def test_what_cannot_matter_does_not_change_the_key(trajectory_of: TrajectoryOf, change: dict[str, Any]) -> None:
    assert canonical_trajectory(trajectory_of(**change)) == canonical_trajectory(trajectory_of())


def test_the_latent_seed_of_what_resumes_does_not_matter(trajectory_of: TrajectoryOf) -> None:
    one, other = (trajectory_of(latent_seed=seed, resumption=Resumption(latents=ONES, step=1)) for seed in (1, 2))
    assert canonical_trajectory(one) == canonical_trajectory(other)


def test_the_latent_seed_of_what_resumes_inpainting_matters(trajectory_of: TrajectoryOf) -> None:
    """Its initial noise still stands around the mask."""
    around = Inpainting(picture_digest="a", mask_share=0.5)
    resumption = Resumption(latents=ONES, step=1)
    one, other = (trajectory_of(latent_seed=seed, resumption=resumption, inpainting=around) for seed in (1, 2))
    assert canonical_trajectory(one) != canonical_trajectory(other)


def test_model_and_profile_are_in_the_key(trajectory_of: TrajectoryOf) -> None:
    keys = {trajectory_key(model, trajectory_of(), profile) for model in ("a", "b") for profile in ("p", "q")}
    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)
