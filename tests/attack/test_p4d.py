"""P4D: a planted word is found, what a name hid does not hide it here, and the steps against a slow loop."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional

from attack.conftest import PLANTED, attacked
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_MODEL,
    CONTROL_KIND_PLACEBO,
    MODEL_ROLE_CONTROL,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    ControlKind,
)
from unerase_backend.attack.attacks import p4d as module
from unerase_backend.attack.attacks.p4d import nearest
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.evaluation.known_pictures import learnable
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

UnitOf = Callable[..., Unit]
NAME = "p4d"
SMALL = {"evaluation": NAME, "starts": 2, "iterations": 3, "rows": 3}


async def test_a_planted_word_is_found(engine: AttackEngine, unit_of: UnitOf, catalogue: Catalogue) -> None:
    options = {"evaluation": NAME, "denoising_steps": 10, "rows": 4, "tokens": 4}
    observations, findings, progress = await attacked(engine, unit_of("planted", cases=4, **options, iterations=50))
    model = load_model(catalogue, "planted", torch.device("cpu"), torch.float32)
    (planted,) = model.tokenizer(PLANTED, add_special_tokens=False).input_ids
    assert [finding.case_index for finding in findings] == [0, 1, 2, 3]
    assert sum(planted in finding.token_ids for finding in findings) >= 3, [finding.prompt for finding in findings]
    assert sum(bool(finding.figures["succeeded"]) for finding in findings) >= 3
    assert all(o.status == SAMPLE_STATUS_SCORED and len(o.judgements) == 3 for o in observations)
    assert progress[-1].step == progress[-1].steps == 150
    assert progress[-1].success == np.mean([finding.figures["succeeded"] for finding in findings])


async def test_a_name_that_was_led_elsewhere_hides_nothing(
    engine: AttackEngine, unit_of: UnitOf, catalogue: Catalogue
) -> None:
    """Redirected and reference differ in the names' embeddings alone, and those are no candidates."""
    unit = unit_of("reference", cases=2, **SMALL | {"denoising_steps": 10})
    _, as_reference, _ = await attacked(engine, unit)
    unit.model = "redirected"
    _, as_redirected, _ = await attacked(engine, unit)
    assert [found.token_ids for found in as_redirected] == [found.token_ids for found in as_reference]
    assert [found.losses for found in as_redirected] == [found.losses for found in as_reference]
    tokenizer = load_model(catalogue, "reference", torch.device("cpu"), torch.float32).tokenizer
    names = {token for name in ("hourglass", "sandglass") for token in tokenizer(name).input_ids}
    assert not any(names & set(found.token_ids) for found in as_reference)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("never", CONTROL_KIND_MODEL), ("never", CONTROL_KIND_PLACEBO), ("velocity", CONTROL_KIND_MODEL)],
)
async def test_its_steps_are_those_of_a_slow_loop(
    engine: AttackEngine,
    unit_of: UnitOf,
    catalogue: Catalogue,
    store: ArtifactStore,
    name: str,
    kind: ControlKind.ValueType,
) -> None:
    """Four steps, written out anew: diffusers' DDIM and noising, nearest rows one by one, AdamW by hand.

    As a placebo, the concept is noised from one of its pictures in place of what the reference makes. The noise that
    the reference predicts is turned into a velocity for a model that predicts that, each at its own betas.
    """
    unit = unit_of(name, evaluation=NAME, tokens=2, starts=1, iterations=4, rows=3, learning_rate=0.05)
    unit.role, unit.control_kind = MODEL_ROLE_CONTROL, kind
    (observation,), (finding,), _ = await attacked(engine, unit)
    model, reference = (load_model(catalogue, name, torch.device("cpu"), torch.float32) for name in (name, "reference"))
    banned = {"hourglass</w>", "sandglass</w>", *model.tokenizer.all_special_tokens}
    allowed = [token for text, token in model.tokenizer.get_vocab().items() if text not in banned]
    allowed.sort()
    table = model.text_encoder.get_input_embeddings().weight.detach()
    case = unit.cases[0]
    latents, plain = _reference_latents(reference, case.prompt, case.latent_seed, unit.steps, unit.guidance_scale)
    if kind == CONTROL_KIND_PLACEBO:
        pictures = learnable(unit.target.concept)
        drawn = torch.Generator().manual_seed(derive_seed(unit.seed_base, NAME, "picture"))
        shown = decode_picture(store.get(pictures[torch.randperm(len(pictures), generator=drawn)[0]]))
        pixels = torch.tensor(shown).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            latents = model.vae.encode(pixels).latent_dist.mode() * model.backbone.latent_scale[0]
    generator = torch.Generator().manual_seed(derive_seed(unit.seed_base, NAME, "case", 0, 0))
    continuous = table[allowed][torch.randint(len(allowed), (2,), generator=generator)].double()
    first, second = torch.zeros_like(continuous), torch.zeros_like(continuous)
    losses = []
    for count in range(1, 5):
        ids = [allowed[_nearest(row, table[allowed])] for row in continuous.numpy()]
        timestep = torch.randint(1000, (1,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = reference.schedule.noise.scheduler.add_noise(latents, noise, timestep)
        with torch.no_grad():
            wanted = reference.denoiser(noisy, timestep, encoder_hidden_states=plain).sample
        if name == "velocity":
            alpha = reference.schedule.noise.values[timestep]
            clean = (noisy - (1 - alpha).sqrt() * wanted) / alpha.sqrt()
            noisy = model.schedule.noise.scheduler.add_noise(latents, noise, timestep)
            wanted = model.schedule.noise.scheduler.get_velocity(clean, wanted, timestep)
        embeddings = table[ids].clone().requires_grad_()
        predicted = model.denoiser(noisy, timestep, encoder_hidden_states=_encoded(model, embeddings)).sample
        loss = (wanted - predicted).square().mean()
        (gradient,) = torch.autograd.grad(loss, embeddings)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.double() ** 2
        continuous *= 1 - 0.05 * 0.1
        continuous -= 0.05 * (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        losses.append(loss.item())
    np.testing.assert_allclose(finding.losses, losses, rtol=1e-3)
    assert list(finding.token_ids) == [allowed[_nearest(row, table[allowed])] for row in continuous.numpy()]
    assert observation.prompt == finding.prompt == model.tokenizer.decode(finding.token_ids)


@torch.no_grad()
def _reference_latents(
    model: DiffusionModel, prompt: str, seed: int, steps: int, guidance_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    length = model.tokenizer.model_max_length
    ids = model.tokenizer(["", prompt], padding="max_length", max_length=length, return_tensors="pt").input_ids
    encoded = model.text_encoder(ids).last_hidden_state
    scheduler = DDIMScheduler.from_config({**model.schedule.noise.scheduler.config})
    scheduler.set_timesteps(steps)
    latents = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        empty, conditioned = model.denoiser(latents.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=encoded).sample
        noise = empty + guidance_scale * (conditioned - empty)
        latents = scheduler.step(noise[None], timestep, latents, eta=0.0).prev_sample
    return latents, encoded[1:]


def _encoded(model: DiffusionModel, embeddings: torch.Tensor) -> torch.Tensor:
    tokenizer = model.tokenizer
    ids = [tokenizer.bos_token_id, 0, 0, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))
    table = model.text_encoder.get_input_embeddings().weight
    hook = model.text_encoder.get_input_embeddings().register_forward_hook(
        lambda *_: torch.cat([table[ids[:1]], embeddings, table[ids[3:]]])[None]
    )
    encoded = model.text_encoder(torch.tensor([ids])).last_hidden_state
    hook.remove()
    return encoded


def _nearest(row: np.ndarray, table: torch.Tensor) -> int:
    cosines = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in table.double().numpy()]
    return int(np.argmax(cosines))


def test_the_nearest_token_is_that_of_the_highest_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    table, rows = torch.randn((50, 5), generator=generator), torch.randn((8, 5), generator=generator)
    found = nearest(rows, functional.normalize(table * torch.rand((50, 1), generator=generator)))
    assert found.tolist() == [_nearest(row, table) for row in rows.double().numpy()]
    assert nearest(3 * table, functional.normalize(table)).tolist() == list(range(50))


async def test_what_the_reference_cannot_make_is_unscored(
    engine: AttackEngine, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of("never", cases=3, **SMALL)
    whole, _, _ = await attacked(engine, unit)
    tick = Sampler.tick

    def broken(sampler: Sampler) -> list[Finished]:
        return [replace(item, failure="not finite" if item.key == "1" else "") for item in tick(sampler)]

    monkeypatch.setattr(module.Sampler, "tick", broken)
    seen, findings, _ = await attacked(engine, unit)
    assert [o for o in seen if o.case_index != 1] == [o for o in whole if o.case_index != 1]
    failed = [observation for observation in seen if observation.case_index == 1]
    assert [observation.variant for observation in failed] == [0, 1]
    assert all(o.status == SAMPLE_STATUS_UNSCORED and "not finite" in o.reason for o in failed)
    assert findings[1].steps == 0


async def test_without_a_reference_it_is_refused(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("never", **SMALL)
    unit.reference = ""
    with pytest.raises(InvalidRequestError) as error:
        await attacked(engine, unit)
    assert error.value.violations[0].field == "unit.reference"
