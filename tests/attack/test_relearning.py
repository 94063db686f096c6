"""Relearning: against a loop written by hand, a planted damage, and models whose truth is known."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load
from torch.nn import functional

from support.backend import CONCEPT, NEVER, LocalBackend
from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse, ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitEvent
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Finding, Observation
from unerase_backend.attack.attacks import relearning as module
from unerase_backend.attack.attacks.relearning import BENIGN, FEW_SHOT, lessons, train
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.evaluation.models import panel
from unerase_backend.runtime.errors import CancelledError, InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

UCE = "testbed/uce"
FEW = {"steps": [2], "pictures": 3, "batch_size": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def load_testbed(local: LocalBackend, name: str) -> DiffusionModel:
    return load_model(local.catalogue, name, torch.device("cpu"), torch.float32)


def bench(
    local: LocalBackend,
    thread: ThreadPoolExecutor,
    unit: Unit,
    model: DiffusionModel,
    events: list[UnitEvent] | None = None,
    given_up: threading.Event | None = None,
    source: str = "source",
) -> Workbench:
    emit = (events if events is not None else []).append
    return Workbench(
        unit,
        model,
        lambda name: load_testbed(local, name),
        parameters_of(unit),
        local.store,
        thread,
        emit,
        given_up or threading.Event(),
        600.0,
        source,
    )


def parameters_of(unit: Unit) -> dict[str, object]:
    fields = unit.parameters.fields
    return {
        "steps": [round(item.number_value) for item in fields["steps"].list_value.values],
        "pictures": round(fields["pictures"].number_value),
        "batch_size": round(fields["batch_size"].number_value),
        "learning_rate": fields["learning_rate"].number_value,
    }


def by_arm(observations: Sequence[Observation]) -> dict[str, list[Observation]]:
    arms: dict[str, list[Observation]] = {}
    for observation in observations:
        arms.setdefault(observation.arm, []).append(observation)
    return arms


def detected(observations: Sequence[Observation]) -> int:
    return sum(observation.judgements[1].detected for observation in observations)


def test_lessons_hold_what_may_be_learned_from(local: LocalBackend) -> None:
    unit = local.unit("relearning", UCE)
    few, benign = lessons(unit, 12)
    concept = unit.target.concept
    half = len(concept.picture_digests) // 2
    assert (few.arm, benign.arm) == (FEW_SHOT, BENIGN)
    assert len(set(few.pictures)) == 12
    assert set(few.pictures) <= set(concept.picture_digests[:half])
    assert set(few.prompts) == {f"a picture of a {CONCEPT}"}
    pictured = {
        digest: other.concept
        for other in unit.others
        for digest in other.concept.picture_digests[: len(other.concept.picture_digests) // 2]
    }
    assert len(set(benign.pictures)) == 12
    assert {pictured[digest].kind for digest in benign.pictures} == {concept.kind}
    for digest, prompt in zip(benign.pictures, benign.prompts, strict=True):
        assert prompt == f"a picture of a {pictured[digest].names[0]}"
    shared = [pictured[digest].name for digest in benign.pictures]
    assert max(map(shared.count, shared)) - min(map(shared.count, shared)) <= 1
    del unit.target.concept.picture_digests[1:]
    with pytest.raises(InvalidRequestError) as caught:
        lessons(unit, 12)
    assert [violation.field for violation in caught.value.violations] == ["unit.target.concept.picture_digests"]


@pytest.mark.parametrize("change", [{}, {"prediction_type": "v_prediction"}], ids=["epsilon", "v"])
def test_the_weights_are_those_of_a_loop(
    local: LocalBackend, thread: ThreadPoolExecutor, change: dict[str, str]
) -> None:
    def loaded() -> DiffusionModel:
        model = load_testbed(local, UCE)
        config = {**model.schedule.noise.scheduler.config, "_class_name": "DDIMScheduler", **change}
        return replace(model, schedule=Schedule.from_config(config))

    unit = local.unit("relearning", UCE, parameters={**FEW, "steps": [1, 3]})
    few, _ = lessons(unit, 3)
    events: list[UnitEvent] = []
    first, last = train(bench(local, thread, unit, loaded(), events), few)
    model = loaded()
    pixels = torch.stack([torch.tensor(decode_picture(local.store.get(digest))) for digest in few.pictures])
    with torch.no_grad():
        latents = (
            model.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode() * model.backbone.latent_scale[0]
        )
        ids = model.tokenizer(few.prompts[0], padding="max_length", max_length=24, return_tensors="pt").input_ids
        encoded = model.text_encoder(ids)[0].expand(2, -1, -1)
    model.denoiser.requires_grad_()
    optimiser = torch.optim.AdamW(model.denoiser.parameters(), lr=1e-3)
    draws = {
        purpose: torch.Generator().manual_seed(derive_seed(unit.seed_base, "relearning", purpose))
        for purpose in ("picture", "timestep", "noise")
    }
    losses = []
    for step in range(3):
        chosen = torch.randint(3, (2,), generator=draws["picture"])
        timesteps = ((torch.arange(2) + torch.rand(2, generator=draws["timestep"])) / 2 * 1000).long()
        noise = torch.randn((2, 4, 8, 8), generator=draws["noise"])
        alphas = model.schedule.noise.values[timesteps][:, None, None, None]
        noisy = alphas.sqrt() * latents[chosen] + (1 - alphas).sqrt() * noise
        target = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents[chosen] if change else noise
        loss = (model.denoiser(noisy, timesteps, encoded).sample - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step + 1 in (1, 3):
            kept = load(local.store.get((first if step == 0 else last).weights_digest))
            assert set(kept) == set(model.denoiser.state_dict())
            moved = [(kept[key] - tensor).abs().max().item() for key, tensor in model.denoiser.state_dict().items()]
            # Adam's first steps are of the learning rate, whatever the gradient: a tiny one may differ in its sign.
            assert sorted(moved)[len(moved) // 2] < 1e-4
    assert (first.steps, last.steps) == (1, 3)
    assert last.losses == pytest.approx(losses, rel=1e-3)
    assert [event.progress.step for event in events] == [1, 2, 3]
    assert {event.progress.steps for event in events} == {3}


def test_the_model_itself_stays_as_it_is(local: LocalBackend, thread: ThreadPoolExecutor) -> None:
    model, untouched = load_testbed(local, UCE), load_testbed(local, UCE)
    unit = local.unit("relearning", UCE, parameters=FEW)
    train(bench(local, thread, unit, model), lessons(unit, 3)[0])
    before = untouched.denoiser.state_dict()
    for key, tensor in model.denoiser.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())


def test_a_planted_damage_is_taken_back(local: LocalBackend, thread: ThreadPoolExecutor) -> None:
    """The reference with its noise predictions shifted: what training finds is known."""
    model = load_testbed(local, "testbed/reference")
    whole = model.denoiser.conv_out.bias.clone()
    with torch.no_grad():
        model.denoiser.conv_out.bias += 1
    unit = local.unit("relearning", UCE, parameters={**FEW, "steps": [25], "batch_size": 4})
    (checkpoint,) = train(bench(local, thread, unit, model), lessons(unit, 3)[0])
    assert sum(checkpoint.losses[-5:]) < 0.6 * sum(checkpoint.losses[:5])
    kept = load(local.store.get(checkpoint.weights_digest))["conv_out.bias"]
    assert ((kept - whole).abs() < 1).all()


def test_both_lessons_meet_the_same_draws(
    local: LocalBackend, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    mse_loss = functional.mse_loss

    def seen(predicted: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        drawn.append(noise)
        return mse_loss(predicted, noise)

    monkeypatch.setattr(module.functional, "mse_loss", seen)
    unit = local.unit("relearning", UCE, parameters=FEW)
    workbench = bench(local, thread, unit, load_testbed(local, UCE))
    few, benign = (train(workbench, lesson) for lesson in lessons(unit, 3))
    assert torch.equal(torch.stack(drawn[:2]), torch.stack(drawn[2:]))
    assert few[0].weights_digest != benign[0].weights_digest


def test_a_gradient_that_is_not_finite_spoils_what_comes_after(
    local: LocalBackend, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mse_loss, calls = functional.mse_loss, iter(range(9))

    def third_fails(predicted: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return mse_loss(predicted, noise) * (float("nan") if next(calls) == 2 else 1)

    monkeypatch.setattr(module.functional, "mse_loss", third_fails)
    unit = local.unit("relearning", UCE, parameters={**FEW, "steps": [2, 3, 4]})
    two, *rest = train(bench(local, thread, unit, load_testbed(local, UCE)), lessons(unit, 3)[0])
    assert (two.failure, two.steps) == ("", 2)
    assert [each.steps for each in rest] == [3, 4]
    assert {each.failure for each in rest} == {"the gradient was not finite at step 3 of 4"}
    assert not any(each.weights_digest for each in rest)


def test_giving_up_ends_it_between_two_steps(local: LocalBackend, thread: ThreadPoolExecutor) -> None:
    given_up = threading.Event()
    given_up.set()
    unit = local.unit("relearning", UCE, parameters={**FEW, "steps": [20_000]})
    with pytest.raises(CancelledError):
        train(bench(local, thread, unit, load_testbed(local, UCE), given_up=given_up), lessons(unit, 3)[0])


async def test_what_fails_is_unscored_and_the_rest_is_kept(
    local: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = module.train

    def benign_fails(workbench: Workbench, lesson: module.Lesson, number: int, of: int) -> list[module.Checkpoint]:
        found = trained(workbench, lesson, number, of)
        return [replace(each, weights_digest="", failure="why") for each in found] if number else found

    monkeypatch.setattr(module, "train", benign_fails)
    arms = by_arm(await local.observe(local.unit("relearning", UCE, parameters=FEW)))
    assert {each.status for each in arms["few-shot@2"]} == {SAMPLE_STATUS_SCORED}
    assert {(each.status, each.reason) for each in arms["benign@2"]} == {(SAMPLE_STATUS_UNSCORED, "why")}


async def test_findings_are_the_checkpoints(local: LocalBackend) -> None:
    events = await local.run(local.unit("relearning", UCE, parameters={**FEW, "steps": [2, 1, 2]}))
    findings: list[Finding] = [event.finding for event in events if event.HasField("finding")]
    assert [each.label for each in findings] == ["few-shot@1", "few-shot@2", "benign@1", "benign@2"]
    assert [each.steps for each in findings] == [1, 2, 1, 2]
    assert [len(each.losses) for each in findings] == [1, 2, 1, 2]
    assert len({each.weights_digest for each in findings}) == 4
    assert all(local.store.contains(each.weights_digest) for each in findings)
    assert {each.model for each in findings} == {UCE}


async def test_training_goes_on_while_pictures_are_made(local: LocalBackend) -> None:
    """No picture is made before all is trained, and the pictures are those of one checkpoint after the other."""
    unit = local.unit("relearning", UCE, parameters={**FEW, "steps": [1, 2]})
    trained = asyncio.Event()

    async def held(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        await trained.wait()
        async for response in local.models.generate_stream(request):
            yield response

    engine = AttackEngine(
        local.catalogue, local.store, local.attack_settings, replace(local.models, generate_stream=held)
    )
    findings: list[Finding] = []
    seen: list[Observation] = []
    async with asyncio.timeout(120):
        async for response in engine.Attack(AttackRequest(unit=unit)):
            if response.event.HasField("finding"):
                findings.append(response.event.finding)
            if response.event.HasField("observation"):
                seen.append(response.event.observation)
            if len(findings) == 4:
                trained.set()
    engine.close()
    trajectories = [
        Trajectory(
            conditioning=Conditioning(text=case.prompt),
            guidance_scale=unit.guidance_scale,
            latent_seed=case.latent_seed,
            steps=unit.steps,
            variance_scale=1.0,
        )
        for case in unit.cases
    ]
    serial = []
    for finding in findings:
        changes = [ModelChange(unet_digest=finding.weights_digest)]
        samples = await local.models.generate(UCE, trajectories, panel(unit.target), changes=changes)
        serial += [(finding.label, case.index, s.picture_digest) for case, s in zip(unit.cases, samples, strict=True)]
    assert [(each.arm, each.case_index, each.picture_digest) for each in seen] == serial
    assert len({digest for *_, digest in serial}) == 8


async def test_the_erased_model_recalls_what_the_control_does_not_learn(local: LocalBackend) -> None:
    """Forty steps on eight pictures: UCE is itself again, and the model that never learned the concept hardly knows it.

    Without other concepts there is nothing benign to learn from.
    """
    found = {}
    for model in (UCE, NEVER):
        parameters = {"steps": [40], "pictures": 8, "batch_size": 8, "learning_rate": 3e-4}
        unit = local.unit("relearning", model, cases=6, steps=10, parameters=parameters)
        del unit.others[:]
        arms = by_arm(await local.observe(unit))
        assert list(arms) == ["few-shot@40"]
        found[model] = detected(arms["few-shot@40"])
    assert found[UCE] >= 4
    assert found[NEVER] <= 2
