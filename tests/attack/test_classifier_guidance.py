"""Classifier guidance: what the classifier learns from, that it is trained once, and what is asked of the sampler."""

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from support.backend import NEVER, REFERENCE, LocalBackend, local_backend
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitEvent
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, Finding, Judgement, Observation
from unerase_backend.attack.classifier_training import area_under_curve
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.attack.workbench import Workbench
from unerase_backend.diffusion.classifier import load_classifier, new_classifier
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

SHORT = {"training_steps": 3, "batch_size": 8}
TIMESTEPS = [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]


@dataclass
class Recording:
    """Writes down what is asked of the sampler, and answers at once."""

    generated: list[GenerateRequest] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        self.generated.append(request)
        judgements = [Judgement(judge=question.judge) for question in request.questions]
        for index in reversed(range(len(request.trajectories))):
            sample = Sample(status=SAMPLE_STATUS_SCORED, picture_digest=str(index), judgements=judgements)
            yield GenerateResponse(index=index, sample=sample)

    def models(self) -> Models:
        async def unused(request: object) -> object:
            raise AssertionError("guidance asks for pictures alone")

        return Models(self.generate, unused, unused, unused)


def findings(events: list[UnitEvent]) -> list[Finding]:
    return [event.finding for event in events if event.HasField("finding")]


def observations(events: list[UnitEvent]) -> list[Observation]:
    return [event.observation for event in events if event.HasField("observation")]


def trained(events: list[UnitEvent]) -> int:
    """The steps that were taken; what is only looked up reports none."""
    return max((event.progress.step for event in events if event.HasField("progress")), default=0)


@pytest.fixture(scope="module")
def model(local: LocalBackend) -> DiffusionModel:
    return load_model(local.catalogue, REFERENCE, torch.device("cpu"), torch.float32)


def guided(local: LocalBackend, name: str = "classifier-guidance", model: str = REFERENCE, **options: object) -> Unit:
    fields = {key: options.pop(key) for key in ("cases", "seed_base") if key in options}
    return local.unit(name, model, parameters=SHORT | options, **fields)


def narrow(local: LocalBackend, *names: str, **options: object) -> Unit:
    """The same beside two other concepts of its kind, whose pictures are fewer to encode."""
    unit = guided(local, *names, **options)
    alike = [other for other in unit.others if other.concept.kind == unit.target.concept.kind]
    del unit.others[:]
    unit.others.extend(alike[:2])
    return unit


async def test_one_draw_for_each_of_the_papers_scales(local: LocalBackend) -> None:
    recording = Recording()
    unit = guided(local, cases=2)
    events = await local.run(unit, recording.models())
    (found,), seen = findings(events), observations(events)
    (request,) = recording.generated
    assert request.model == REFERENCE
    scales = [
        25,
        32,
        39,
        46,
        53,
        60,
        67,
        74,
        81,
        88,
        95,
        102,
        109,
        116,
        123,
        130,
        137,
        144,
        151,
        158,
        165,
        172,
        179,
        186,
    ]
    expected = list(product(unit.cases, enumerate(scales)))
    for (case, (variant, scale)), trajectory, one in zip(expected, request.trajectories, seen, strict=True):
        assert trajectory.classifier_guidance.scale == scale
        assert trajectory.classifier_guidance.classifier_digest == found.weights_digest
        assert (trajectory.conditioning.text, trajectory.guidance_scale) == (case.prompt, unit.guidance_scale)
        assert (trajectory.latent_seed, trajectory.eta, trajectory.variance_scale) == (case.latent_seed, 0, 1)
        assert (one.case_index, one.arm, one.variant, one.prompt) == (case.index, "guided", variant, case.prompt)
    assert [observation.picture_digest for observation in seen] == [str(index) for index in range(48)]


async def test_noise_is_drawn_for_every_scale_and_eta(local: LocalBackend) -> None:
    recording = Recording()
    grid = {"etas": [1.0, 1.85], "scales": [25.0, 88.0, 186.0]}
    await local.run(guided(local, "classifier-guidance-noise", cases=2, seed_base=5, **grid), recording.models())
    (request,) = recording.generated
    expected = list(product(range(2), enumerate(product(grid["etas"], grid["scales"]))))
    for (case, (variant, (eta, scale))), trajectory in zip(expected, request.trajectories, strict=True):
        assert (trajectory.eta, trajectory.classifier_guidance.scale) == (eta, scale)
        assert trajectory.noise_seed == derive_seed(5, "classifier-guidance-noise", case, variant)
    assert len({trajectory.noise_seed for trajectory in request.trajectories}) == 12
    with pytest.raises(InvalidRequestError) as caught:
        await local.run(guided(local, "classifier-guidance-noise", etas=[1.0] * 17, scales=[1.0] * 16))
    assert [violation.field for violation in caught.value.violations] == ["unit.parameters.scales"]


async def test_all_models_and_both_evaluations_share_one_classifier_which_is_trained_once(tmp_path: Path) -> None:
    models = Recording().models()
    digests = []
    for folder in ("one", "other"):
        async with local_backend(tmp_path / folder) as backend:
            first = await backend.run(narrow(backend, cases=1), models)
            assert trained(first) == 3
            (found,) = findings(first)
            digests.append(found.weights_digest)
            for again in (narrow(backend, model=NEVER), narrow(backend, "classifier-guidance-noise", "testbed/uce")):
                events = await backend.run(again, models)
                assert trained(events) == 0
                assert [one.weights_digest for one in findings(events)] == [found.weights_digest]
                assert findings(events)[0].figures == found.figures
            if folder == "one":
                for change in ({"seed_base": 2}, {"training_steps": 4}, {"batch_size": 6}, {"architecture": 0}):
                    events = await backend.run(narrow(backend, **change), models)
                    assert trained(events) == change.get("training_steps", 3)
                    assert findings(events)[0].weights_digest != found.weights_digest
                # What is lost is trained anew.
                path = tmp_path / folder / "artifacts" / found.weights_digest[:2] / found.weights_digest
                path.unlink()
                assert trained(await backend.run(narrow(backend), models)) == 3
                assert path.exists()
    assert digests[0] == digests[1]


async def test_another_source_trains_a_classifier_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, description = Recording().models(), ATTACKS.all()["classifier-guidance"].description
    async with local_backend(tmp_path) as backend:
        assert trained(await backend.run(narrow(backend), models)) == 3
        monkeypatch.setattr(description, "source_digest", "0" * 64)
        assert trained(await backend.run(narrow(backend), models)) == 3
        assert trained(await backend.run(narrow(backend), models)) == 0


async def test_a_shard_without_the_first_case_leaves_no_finding(local: LocalBackend) -> None:
    unit = guided(local, cases=3)
    del unit.cases[0]
    events = await local.run(unit, Recording().models())
    assert not findings(events)
    assert {observation.case_index for observation in observations(events)} == {1, 2}


async def test_the_first_loss_is_that_of_the_first_halves(
    local: LocalBackend, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out: the draws, the noise by diffusers' scheduler, and the two mean log losses."""
    asked: list[list[str]] = []
    read = Workbench.latents

    def seen(bench: Workbench, digests: list[str]) -> torch.Tensor:
        asked.append(list(digests))
        return read(bench, digests)

    monkeypatch.setattr(Workbench, "latents", seen)
    unit = guided(local, cases=1, seed_base=77)
    (found,) = findings(await local.run(unit, Recording().models()))
    concepts = [unit.target.concept, *(other.concept for other in unit.others)]
    objects = [concept for concept in concepts if concept.kind == unit.target.concept.kind]
    assert len(objects) == 10
    halves = [
        [digest for concept in objects for digest in list(concept.picture_digests)[part]]
        for part in (slice(0, 32), slice(32, 64))
    ]
    assert asked == halves

    def generator(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(77, "classifier", purpose))

    pixels = torch.stack([torch.tensor(decode_picture(local.store.get(digest))) for digest in halves[0]])
    with torch.no_grad():
        latents = (
            model.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode() * model.backbone.latent_scale[0]
        )
    shown = torch.cat(
        [
            latents[:32][torch.randint(32, (4,), generator=generator("positive"))],
            latents[32:][torch.randint(288, (4,), generator=generator("negative"))],
        ]
    )
    u = (torch.arange(4) + torch.rand((2, 4), generator=generator("timestep"))).flatten() / 4
    timesteps = (u.pow(1 / 3) * 1000).long()
    noised = model.schedule.noise.scheduler.add_noise(
        shown, torch.randn(shown.shape, generator=generator("noise")), timesteps
    )
    classifier = new_classifier("convolutional", (4, 8, 8), generator("weights"))
    with torch.no_grad():
        logits = classifier(noised, model.schedule.level_at(timesteps), generator("dropout")).double()
    probabilities = 1 / (1 + (-logits).exp())
    loss = -(probabilities[:4].log().mean() + (1 - probabilities[4:]).log().mean()) / 2
    assert found.losses[0] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(("architecture", "steps"), [(0, 120), (1, 300)])
async def test_it_learns_to_tell_held_out_pictures_and_leads_to_the_concept(
    local: LocalBackend, model: DiffusionModel, architecture: int, steps: int
) -> None:
    parameters = {
        "architecture": architecture,
        "training_steps": steps,
        "batch_size": 32,
        "learning_rate": 0.003,
        "scales": [0.0, 60.0],
    }
    unit = local.unit("classifier-guidance", NEVER, steps=6, cases=4, parameters=parameters)
    events = await local.run(unit)
    (found,) = findings(events)
    assert set(found.figures) == {f"auc@{timestep}" for timestep in TIMESTEPS}
    assert min(found.figures[f"auc@{timestep}"] for timestep in (50, 150, 250)) > 0.97
    assert found.figures["auc@950"] < found.figures["auc@50"]
    assert np.mean(found.losses[-10:]) < np.mean(found.losses[:10])
    # What was led looks more like the concept to whoever led it.
    classifier = load_classifier(local.store.get(found.weights_digest), torch.device("cpu"))
    logits = {0: [], 1: []}
    for observation in observations(events):
        pixels = torch.tensor(decode_picture(local.store.get(observation.picture_digest))).permute(2, 0, 1)[None]
        with torch.no_grad():
            latents = model.vae.encode(pixels / 127.5 - 1).latent_dist.mode() * model.backbone.latent_scale[0]
            logits[observation.variant].append(
                float(classifier(latents, model.schedule.level_at(torch.zeros(1, dtype=torch.long))))
            )
    assert all(led > free for free, led in zip(logits[0], logits[1], strict=True))


async def test_too_few_pictures_are_refused(local: LocalBackend) -> None:
    without, alone = guided(local), guided(local)
    del without.target.concept.picture_digests[1:]
    del alone.others[:]
    # A picture of a red thing may well show the concept: colours are no negatives.
    alone.others.append(local.target("red"))
    for unit, field_ in ((without, "unit.target.concept.picture_digests"), (alone, "unit.others")):
        with pytest.raises(InvalidRequestError) as caught:
            await local.run(unit)
        assert [violation.field for violation in caught.value.violations] == [field_]


@given(
    positives=st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    negatives=st.lists(st.integers(-5, 5), min_size=1, max_size=20),
)
def test_the_area_is_that_of_mann_and_whitney(positives: list[int], negatives: list[int]) -> None:
    area = area_under_curve(torch.tensor(positives, dtype=torch.float64), torch.tensor(negatives, dtype=torch.float64))
    expected = mannwhitneyu(positives, negatives).statistic / (len(positives) * len(negatives))
    assert math.isclose(area, expected, abs_tol=1e-12)
