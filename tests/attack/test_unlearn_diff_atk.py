"""UnlearnDiffAtk: a planted word is found, and the formula's parts against references of their own."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from attack.conftest import PLANTED, attacked
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, TokenIds, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import CONTROL_KIND_CONCEPT_FREE, MODEL_ROLE_CONTROL, SAMPLE_STATUS_SCORED
from unerase_backend.attack.attacks import unlearn_diff_atk as module
from unerase_backend.attack.attacks.unlearn_diff_atk import project_onto_simplex
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.prompts import CaseRecord
from unerase_backend.attack.workbench import Workbench
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

UnitOf = Callable[..., Unit]
NAME = "unlearn-diff-atk"
SMALL = {"evaluation": NAME, "timesteps": 2, "iterations": 3, "rows": 3}


async def test_a_planted_word_is_found(engine: AttackEngine, unit_of: UnitOf, catalogue: Catalogue) -> None:
    options = {"evaluation": NAME, "cases": 4, "denoising_steps": 10, "rows": 4, "tokens": 2}
    unit = unit_of("planted", **options, timesteps=5, iterations=40)
    observations, findings, progress = await attacked(engine, unit)
    model = load_model(catalogue, "planted", torch.device("cpu"), torch.float32)
    (planted,) = model.tokenizer(PLANTED, add_special_tokens=False).input_ids
    plain = [observation for observation in observations if observation.variant == 0]
    assert [observation.prompt for observation in plain] == [case.prompt for case in unit.cases]
    assert [finding.case_index for finding in findings] == [0, 1, 2, 3]
    # A prompt for just any thing may show an hourglass by chance.
    searched = [finding for finding in findings if finding.steps]
    assert len(searched) >= 2
    for finding in searched:
        assert planted in finding.token_ids[:2], finding.prompt
        assert finding.figures["succeeded"]
    assert all(o.status == SAMPLE_STATUS_SCORED and len(o.judgements) == 3 for o in observations)
    assert progress[-1].step == progress[-1].steps == 200
    assert progress[-1].success == sum(finding.figures["succeeded"] for finding in findings) / 4


async def test_the_finding_makes_the_picture_again(
    engine: AttackEngine, unit_of: UnitOf, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of("never", cases=2, **SMALL)
    observations, findings, _ = await attacked(engine, unit)
    for case, finding in zip(unit.cases, findings, strict=True):
        draws = {o.variant: o for o in observations if o.case_index == case.index}
        assert sorted(draws) == [0, 1, 2]
        best = draws[int(finding.figures["variant"])]
        assert best.judgements[0].score == max(o.judgements[0].score for o in draws.values())
        trajectory = Trajectory(
            conditioning=Conditioning(token_ids=TokenIds(ids=finding.token_ids)),
            guidance_scale=unit.guidance_scale,
            latent_seed=case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        (again,) = await models.generate("never", [trajectory], panel(unit.target))
        assert again.picture_digest == best.picture_digest
        assert best.prompt == finding.prompt


@pytest.mark.parametrize(
    ("name", "schedule_of", "timesteps"),
    [("never", "", (501, 1)), ("velocity", "", (999, 499)), ("velocity", "reference", (501, 1))],
)
async def test_its_steps_are_those_of_a_slow_loop(
    engine: AttackEngine,
    unit_of: UnitOf,
    catalogue: Catalogue,
    store: ArtifactStore,
    name: str,
    schedule_of: str,
    timesteps: tuple[int, int],
) -> None:
    """Two timesteps of two steps, written out anew: diffusers' noising, one-hot rows, Adam by hand, bisection."""
    unit = unit_of(name, evaluation=NAME, tokens=1, timesteps=2, iterations=2, rows=3, learning_rate=0.05)
    unit.schedule_of = schedule_of
    observations, (finding,), _ = await attacked(engine, unit)
    model = load_model(catalogue, name, torch.device("cpu"), torch.float32)
    scheduler = model.schedule.noise.scheduler
    allowed = [i for i in range(len(model.tokenizer)) if i not in model.tokenizer.all_special_ids]
    table = model.text_encoder.get_input_embeddings().weight.detach().clone()
    words = model.tokenizer(unit.cases[0].prompt, add_special_tokens=False).input_ids
    latents = _target(model, unit, store)
    generator = torch.Generator().manual_seed(derive_seed(unit.seed_base, NAME, "case", 0))
    row = np.full(len(allowed), 1 / len(allowed))
    first, second = np.zeros_like(row), np.zeros_like(row)
    losses, prompts = [], []
    for timestep in timesteps:
        for _ in range(2):
            drawn = np.searchsorted(np.cumsum(row), torch.rand((1, 1), generator=generator).item(), side="right")
            noise = torch.randn(latents.shape, generator=generator)
            noisy = scheduler.add_noise(latents[None], noise[None], torch.tensor([timestep]))
            target = noise
            if name == "velocity":
                (target,) = scheduler.get_velocity(latents[None], noise[None], torch.tensor([timestep]))
            one_hot = torch.zeros(len(table)).index_fill(0, torch.tensor(allowed[drawn]), 1.0).requires_grad_()
            loss = _loss(model, table, one_hot, words, noisy, timestep, target)
            (gradient,) = torch.autograd.grad(loss, one_hot)
            gradient = gradient[allowed].clamp(-1, 1).double().numpy() + 0.1 * row
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            count = len(losses) + 1
            row -= 0.05 * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
            row = _projected(row)
            losses.append(loss.item())
        ids = [allowed[int(row.argmax())], *words]
        prompts.append(model.tokenizer.decode(ids))
    np.testing.assert_allclose(finding.losses, losses, rtol=1e-4)
    assert [observation.prompt for observation in observations[1:]] == prompts


async def test_a_concept_free_case_has_the_picture_in_its_place(engine: AttackEngine, unit_of: UnitOf) -> None:
    """Its picture is of another concept, that of its prompt; so no case may get the picture of another."""
    unit = unit_of("never", cases=3, **SMALL)
    unit.role, unit.control_kind = MODEL_ROLE_CONTROL, CONTROL_KIND_CONCEPT_FREE
    pictures = list(unit.target.concept.picture_digests)
    _, together, _ = await attacked(engine, unit)
    for index in range(3):
        unit.target.concept.picture_digests[:] = pictures[index : index + 1] * 2
        _, alike, _ = await attacked(engine, unit)
        assert alike[index].losses == together[index].losses
        assert alike[index].losses != together[index - 1].losses


def _target(model: DiffusionModel, unit: Unit, store: ArtifactStore) -> torch.Tensor:
    digests = unit.target.concept.picture_digests
    half = len(digests) // 2
    generator = torch.Generator().manual_seed(derive_seed(unit.seed_base, NAME, "picture"))
    chosen = torch.randperm(half, generator=generator)[0]
    values = torch.tensor(decode_picture(store.get(digests[int(chosen)])))[None]
    with torch.no_grad():
        return (
            model.vae.encode(values.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()[0]
            * model.backbone.latent_scale[0]
        )


def _loss(
    model: DiffusionModel,
    table: torch.Tensor,
    one_hot: torch.Tensor,
    words: list[int],
    noisy: torch.Tensor,
    timestep: int,
    target: torch.Tensor,
) -> torch.Tensor:
    """The loss of a prompt that begins with a (possibly soft) one-hot token, through every token's own embedding."""
    tokenizer = model.tokenizer
    ids = [tokenizer.bos_token_id, 0, *words, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))
    hook = model.text_encoder.get_input_embeddings().register_forward_hook(
        lambda *_: torch.cat([table[ids[:1]], (one_hot @ table)[None], table[ids[2:]]])[None]
    )
    encoded = model.text_encoder(torch.tensor([ids])).last_hidden_state
    hook.remove()
    predicted = model.denoiser(noisy, torch.tensor([timestep]), encoder_hidden_states=encoded).sample
    return (target - predicted[0]).square().mean()


def _projected(values: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by bisection on the threshold: another algorithm than the one tested."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - low, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_is_the_nearest_point_that_a_solver_finds(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 1, 6)
    solved = minimize(
        lambda point: ((point - values) ** 2).sum(),
        np.full(6, 1 / 6),
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda point: point.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    projected = project_onto_simplex(torch.from_numpy(values)[None])[0].numpy()
    np.testing.assert_allclose(projected, solved.x, atol=1e-5)


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=7, max_size=7), min_size=1, max_size=4))
def test_the_projection_is_a_projection(values: list[list[float]]) -> None:
    rows = torch.tensor(values)
    projected = project_onto_simplex(rows)
    assert projected.dtype == rows.dtype
    assert bool((projected >= 0).all())
    torch.testing.assert_close(projected.sum(1), torch.ones(len(rows)), rtol=0, atol=1e-5)
    torch.testing.assert_close(project_onto_simplex(projected), projected, rtol=0, atol=1e-6)
    for row, result in zip(rows.double().numpy(), projected.double().numpy(), strict=True):
        np.testing.assert_allclose(result, _projected(row), atol=1e-5)


def _with_torchs_sort(rows: torch.Tensor) -> torch.Tensor:
    values = rows.double()
    ordered = values.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    support = (ordered * torch.arange(1, rows.shape[1] + 1, dtype=torch.float64) > excess).sum(1, keepdim=True)
    return (values - excess.gather(1, support - 1) / support).clamp(min=0).to(rows.dtype)


def test_searches_that_step_together_have_the_bits_of_each_alone(
    unit_of: UnitOf, catalogue: Catalogue, store: ArtifactStore
) -> None:
    """Against an optimiser and a projection for each search; one search is left out of some steps."""
    unit = unit_of("never", cases=3, evaluation=NAME)
    model = load_model(catalogue, "never", torch.device("cpu"), torch.float32)
    parameters = {"tokens": 3, "learning_rate": 0.01, "weight_decay": 0.1}
    bench = Workbench(unit, model, lambda _: model, parameters, store, None, lambda _: None, threading.Event(), 60, "")
    searches, optimiser = module._begin(unit, bench, [CaseRecord(case) for case in unit.cases])
    alone = [search.relaxed.detach().clone().requires_grad_() for search in searches]
    optimisers = [torch.optim.Adam([rows], 0.01, weight_decay=0.1) for rows in alone]
    generator = torch.Generator().manual_seed(3)
    for step in range(30):
        going = [0, 1, 2] if step % 3 else [0, 2]
        gradients = [0.02 * torch.randn((3, 64), generator=generator) for _ in going]
        module._move(optimiser, [searches[index] for index in going], gradients)
        for index, gradient in zip(going, gradients, strict=True):
            alone[index].grad = searches[index].relaxed_gradient(gradient)
            optimisers[index].step()
            with torch.no_grad():
                alone[index].copy_(_with_torchs_sort(alone[index]))
        for search, rows in zip(searches, alone, strict=True):
            assert torch.equal(search.relaxed, rows)


async def test_a_case_that_has_succeeded_has_all_its_draws(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("reference", cases=3, **SMALL | {"denoising_steps": 10})
    observations, findings, _ = await attacked(engine, unit)
    assert [observation.variant for observation in observations] == [0, 1, 2] * 3
    assert all(finding.steps == 6 and finding.figures["succeeded"] for finding in findings)


async def test_a_case_that_has_succeeded_takes_no_more_steps_if_asked(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("reference", cases=3, **SMALL | {"denoising_steps": 10, "stop_at_success": 1})
    observations, findings, progress = await attacked(engine, unit)
    assert [observation.variant for observation in observations] == [0, 0, 0]
    assert all(observation.judgements[0].detected for observation in observations)
    assert all(finding.steps == 0 and finding.prompt == "a picture of a hourglass" for finding in findings)
    assert [(item.step, item.steps, item.success) for item in progress] == [(6, 6, 1.0)]


async def test_a_long_prompt_makes_room(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("never", **SMALL | {"tokens": 16})
    unit.cases[0].prompt = "a picture of a hourglass " * 5
    observations, (finding,), _ = await attacked(engine, unit)
    assert len(observations) == 3
    assert len(finding.token_ids) <= 25


async def test_a_concept_without_pictures_is_refused(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("never", **SMALL)
    del unit.target.concept.picture_digests[1:]
    with pytest.raises(InvalidRequestError) as error:
        await attacked(engine, unit)
    assert error.value.violations[0].field == "unit.target.concept.picture_digests"
