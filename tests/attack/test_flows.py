"""The attacks' first losses on a rectified flow, written out with diffusers' scheduler and parts.

The testbed's UNet stands in a flow's place, as in the sampler's tests: its output is taken for the flow.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.nn.functional import mse_loss

from support.diffusers_pipeline import diffusers_pipeline
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT
from unerase_backend.attack.attacks.textual_inversion import TEMPLATES
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.evaluation.known_pictures import learnable
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

from .conftest import attacked

UnitOf = Callable[..., Unit]
CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
NAME = "reference"
TRAINED = FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.fixture(scope="module")
def on_flow(catalogue: Catalogue, store: ArtifactStore, models: Models) -> AttackEngine:
    """An engine that has the reference in memory already, with the schedule of a flow."""
    engine = AttackEngine(catalogue, store, AttackSettings(artifacts="unused"), models)
    model = load_model(catalogue, NAME, torch.device("cpu"), torch.float32)
    engine._kept[NAME] = dataclasses.replace(model, schedule=Schedule.from_config(CONFIG))
    return engine


@pytest.fixture(scope="module")
def pipeline(catalogue: Catalogue) -> Any:
    return diffusers_pipeline(catalogue.model_parts(NAME).folder)


def draws(unit: Unit, *purpose: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(unit.seed_base, unit.evaluation, *purpose))


@torch.no_grad()
def latents_of(pipeline: Any, store: ArtifactStore, digests: Sequence[str]) -> torch.Tensor:
    pixels = torch.stack([torch.tensor(decode_picture(store.get(digest))) for digest in digests])
    latents: torch.Tensor = pipeline.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    return latents * pipeline.vae.config.scaling_factor


@torch.no_grad()
def output(pipeline: Any, noisy: torch.Tensor, times: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    """What the UNet says of latents at a flow's times under prompts of tokens, without start, end and padding."""
    tokenizer = pipeline.tokenizer
    rows = [[tokenizer.bos_token_id, *each, tokenizer.eos_token_id] for each in ids]
    rows = [row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row)) for row in rows]
    said: torch.Tensor = pipeline.unet(noisy, times, pipeline.text_encoder(torch.tensor(rows)).last_hidden_state).sample
    return said


def noised(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents at timesteps of training, and their times: the scheduler's own, the last one first."""
    times = TRAINED.timesteps[999 - timesteps]
    return TRAINED.scale_noise(latents, times, noise), times


def words_of(pipeline: Any, text: str) -> list[int]:
    ids: list[int] = pipeline.tokenizer(text, add_special_tokens=False).input_ids
    return ids


async def test_unlearn_diff_atk_takes_the_timesteps_nearest_to_the_flows_steps(
    on_flow: AttackEngine, unit_of: UnitOf, pipeline: Any, store: ArtifactStore
) -> None:
    unit = unit_of(NAME, evaluation="unlearn-diff-atk", tokens=1, timesteps=2, iterations=1, rows=2, learning_rate=1e-6)
    _, (finding,), _ = await attacked(on_flow, unit)
    pictures = list(unit.target.concept.picture_digests)
    chosen = torch.randperm(len(pictures) // 2, generator=draws(unit, "picture"))[0]
    latents = latents_of(pipeline, store, [pictures[int(chosen)]])
    allowed = [i for i in range(len(pipeline.tokenizer)) if i not in pipeline.tokenizer.all_special_ids]
    drawn, losses = draws(unit, "case", 0), []
    # Two steps are at sigma 1 and at 3 u / (1 + 2 u), with u the least sigma of training, 3 / 1002: that of timestep 2.
    for timestep in (999, 2):
        token = allowed[int(torch.rand((1, 1), generator=drawn).item() * len(allowed))]
        noise = torch.randn(latents.shape[1:], generator=drawn)[None]
        noisy, times = noised(latents, noise, torch.tensor([timestep]))
        said = output(pipeline, noisy, times, [[token, *words_of(pipeline, unit.cases[0].prompt)]])
        losses.append(mse_loss(said, noise - latents).item())
    assert list(finding.losses) == pytest.approx(losses, rel=1e-4)


async def test_p4d_compares_flows(on_flow: AttackEngine, unit_of: UnitOf, pipeline: Any) -> None:
    unit = unit_of(NAME, evaluation="p4d", tokens=2, starts=1, iterations=1, rows=2, denoising_steps=3)
    _, (finding,), _ = await attacked(on_flow, unit)
    words = words_of(pipeline, unit.cases[0].prompt)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(3)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(unit.cases[0].latent_seed))
    for time in scheduler.timesteps:
        empty, prompted = output(pipeline, latents.repeat(2, 1, 1, 1), time, [[], words]).split(1)
        latents = scheduler.step(empty + 3.0 * (prompted - empty), time, latents).prev_sample
    banned = {"hourglass</w>", "sandglass</w>", *pipeline.tokenizer.all_special_tokens}
    allowed = sorted(token for text, token in pipeline.tokenizer.get_vocab().items() if text not in banned)
    drawn = draws(unit, "case", 0, 0)
    tokens = [allowed[int(i)] for i in torch.randint(len(allowed), (2,), generator=drawn)]
    timestep = torch.randint(1000, (1,), generator=drawn)
    noise = torch.randn(latents.shape[1:], generator=drawn)[None]
    noisy, times = noised(latents, noise, timestep)
    wanted, said = (output(pipeline, noisy, times, [ids]) for ids in (words, tokens))
    assert list(finding.losses) == pytest.approx([mse_loss(said, wanted).item()], rel=1e-3)


async def test_textual_inversion_learns_from_the_flows_error(
    on_flow: AttackEngine, unit_of: UnitOf, pipeline: Any, store: ArtifactStore
) -> None:
    unit = unit_of(NAME, steps=1, batch_size=4, learning_rate=0.001, tokens=1)
    _, (finding,), _ = await attacked(on_flow, unit)
    pictures = list(unit.target.concept.picture_digests)
    latents = latents_of(pipeline, store, pictures[: len(pictures) // 2])
    templates = TEMPLATES[CONCEPT_KIND_OBJECT]
    chosen = latents[torch.randint(len(latents), (4,), generator=draws(unit, "picture"))]
    prompts = torch.randint(len(templates), (4,), generator=draws(unit, "prompt")).tolist()
    timesteps = ((torch.arange(4) + torch.rand(4, generator=draws(unit, "timestep"))) / 4 * 1000).long()
    noise = torch.randn((4, 4, 8, 8), generator=draws(unit, "noise"))
    noisy, times = noised(chosen, noise, timesteps)
    # The word begins as the concept's initial token.
    said = output(pipeline, noisy, times, [words_of(pipeline, templates[i].format("shape")) for i in prompts])
    assert list(finding.losses) == pytest.approx([mse_loss(said, noise - chosen).item()], rel=1e-4)


async def test_relearning_trains_on_the_flows_error(
    on_flow: AttackEngine, unit_of: UnitOf, pipeline: Any, store: ArtifactStore
) -> None:
    unit = unit_of(NAME, evaluation="relearning", pictures=3, batch_size=2, learning_rate=1e-4)
    unit.parameters.update({"steps": [1]})
    _, findings, _ = await attacked(on_flow, unit)
    latents = latents_of(pipeline, store, learnable(unit.target.concept, 3))
    chosen = latents[torch.randint(3, (2,), generator=draws(unit, "picture"))]
    timesteps = ((torch.arange(2) + torch.rand(2, generator=draws(unit, "timestep"))) / 2 * 1000).long()
    noise = torch.randn((2, 4, 8, 8), generator=draws(unit, "noise"))
    noisy, times = noised(chosen, noise, timesteps)
    said = output(pipeline, noisy, times, [words_of(pipeline, findings[0].prompt)] * 2)
    assert list(findings[0].losses) == pytest.approx([mse_loss(said, noise - chosen).item()], rel=1e-4)
