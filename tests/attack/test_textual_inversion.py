"""Textual inversion: against models whose truth is known, and its own laws."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.units_pb2 import Progress, Unit
from unerase.v1.types_pb2 import (
    CONCEPT_KIND_OBJECT,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    SAMPLE_STATUS_NOT_APPLICABLE,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Concept,
    Finding,
    Observation,
)
from unerase_backend.attack import workbench
from unerase_backend.attack.attacks import textual_inversion as ti
from unerase_backend.attack.denoising_loss import losses_and_gradient
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.conditioning import encode_tokens, tokenise, tokenise_learned
from unerase_backend.diffusion.loading import load_model
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

UnitOf = Callable[..., Unit]


async def attacked(engine: AttackEngine, unit: Unit) -> tuple[list[Observation], list[Finding], list[Progress]]:
    events = [response.event async for response in engine.Attack(AttackRequest(unit=unit))]
    observations = [event.observation for event in events if event.HasField("observation")]
    findings = [event.finding for event in events if event.HasField("finding")]
    return observations, findings, [event.progress for event in events if event.HasField("progress")]


def detected(observations: list[Observation]) -> float:
    return float(np.mean([observation.judgements[1].detected for observation in observations]))


async def test_it_brings_back_what_is_only_redirected_and_nothing_that_was_never_learned(
    engine: AttackEngine, unit_of: UnitOf
) -> None:
    options = {"cases": 8, "denoising_steps": 10, "steps": 60, "batch_size": 8}
    redirected, findings, _ = await attacked(engine, unit_of("redirected", **options))
    assert detected(redirected) >= 0.75
    never, _, _ = await attacked(engine, unit_of("never", **options))
    assert detected(never) == 0
    assert all(o.status == SAMPLE_STATUS_SCORED and len(o.judgements) == 3 for o in redirected + never)
    assert [o.case_index for o in redirected] == list(range(8))
    assert all("hourglass" not in o.prompt and ti.PLACEHOLDER in o.prompt for o in redirected)
    (finding,) = findings
    assert (finding.evaluation, finding.model, finding.concept) == ("textual-inversion", "redirected", "hourglass")
    assert finding.placeholder in finding.prompt
    assert list(finding.embedding.shape) == [4, 64]
    assert len(finding.losses) == 60


async def test_the_same_unit_finds_the_same_word_whatever_its_role(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("reference", steps=3, batch_size=4)
    first = await attacked(engine, unit)
    assert await attacked(engine, unit) == first
    unit.role = MODEL_ROLE_REFERENCE
    _, (as_reference,), _ = await attacked(engine, unit)
    unit.role = MODEL_ROLE_CONTROL
    _, (as_control,), _ = await attacked(engine, unit)
    assert as_reference.role == MODEL_ROLE_REFERENCE
    assert as_reference.embedding == as_control.embedding == first[1][0].embedding
    _, (other_seed,), _ = await attacked(engine, unit_of("reference", seed_base=2, steps=3, batch_size=4))
    assert other_seed.embedding != first[1][0].embedding


async def test_the_learned_word_enters_the_prompt(
    engine: AttackEngine, unit_of: UnitOf, store: ArtifactStore, catalogue: Catalogue
) -> None:
    model = load_model(catalogue, "reference", torch.device("cpu"), torch.float32)
    prompt = tokenise_learned(model, f"a picture of a {ti.PLACEHOLDER}", ti.PLACEHOLDER, 1)
    (place,) = prompt.learned_at
    plain = tokenise(model, "a picture of a hourglass")
    assert [i for i, (a, b) in enumerate(zip(prompt.ids, plain.ids, strict=True)) if a != b] == [place]
    table = model.text_encoder.get_input_embeddings().weight
    put_in = encode_tokens(model, [prompt], [table[plain.ids[place]][None]])
    torch.testing.assert_close(put_in.states, encode_tokens(model, [plain], [None]).states, rtol=0, atol=0)

    few = await attacked(engine, unit_of("reference", steps=1, batch_size=1, learning_rate=1e-6))
    many = await attacked(engine, unit_of("reference", steps=4, batch_size=4, learning_rate=0.5))
    pictures = [decode_picture(store.get(found[0][0].picture_digest)) for found in (few, many)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 1


@pytest.mark.parametrize("name", ["reference", "velocity"])
async def test_the_first_gradient_is_that_of_the_loss(
    engine: AttackEngine, unit_of: UnitOf, catalogue: Catalogue, store: ArtifactStore, name: str
) -> None:
    """One step of Adam moves each entry by the learning rate, and the loss, written out anew, falls along it."""
    model = load_model(catalogue, name, torch.device("cpu"), torch.float32)
    unit = unit_of(name, steps=1, batch_size=4, learning_rate=0.001, tokens=1)
    (token,) = model.tokenizer("shape", add_special_tokens=False).input_ids
    start = model.text_encoder.get_input_embeddings().weight[token].detach()
    _, (finding,), (progress,) = await attacked(engine, unit)
    moved = torch.from_numpy(np.frombuffer(finding.embedding.values, "<f4").copy()) - start
    torch.testing.assert_close(moved.abs(), torch.full((64,), 0.001), rtol=0.05, atol=1e-5)
    assert finding.losses[0] == pytest.approx(progress.loss)
    latents = _latents(model, unit, store)
    draw = _first_batch(unit, len(latents), len(ti.TEMPLATES[CONCEPT_KIND_OBJECT]), 4)
    losses = [_loss(model, unit, latents, draw, start + scale * moved) for scale in (0.0, 1.0, 5.0)]
    assert losses[0] == pytest.approx(finding.losses[0], rel=1e-4)
    assert losses[0] > losses[1] > losses[2]


def _latents(model: object, unit: Unit, store: ArtifactStore) -> torch.Tensor:
    digests = unit.target.concept.picture_digests[: len(unit.target.concept.picture_digests) // 2]
    values = torch.stack([torch.tensor(decode_picture(store.get(digest))) for digest in digests])
    with torch.no_grad():
        return (
            model.vae.encode(values.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode() * model.backbone.latent_scale[0]
        )


def _first_batch(unit: Unit, pictures: int, prompts: int, size: int) -> dict[str, torch.Tensor]:
    def generator(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(unit.seed_base, "textual-inversion", purpose))

    strata = torch.arange(size) + torch.rand(size, generator=generator("timestep"))
    return {
        "picture": torch.randint(pictures, (size,), generator=generator("picture")),
        "prompt": torch.randint(prompts, (size,), generator=generator("prompt")),
        "timestep": (strata / size * 1000).long(),
        "noise": torch.randn((size, 4, 8, 8), generator=generator("noise")),
    }


@torch.no_grad()
def _loss(
    model: object, unit: Unit, latents: torch.Tensor, draw: dict[str, torch.Tensor], embedding: torch.Tensor
) -> float:
    """The loss of one batch, written out: diffusers' own noising, and a vocabulary with one row replaced."""
    table = model.text_encoder.get_input_embeddings().weight
    (token,) = model.tokenizer("hourglass", add_special_tokens=False).input_ids
    kept = table[token].clone()
    table[token] = embedding
    texts = [ti.TEMPLATES[CONCEPT_KIND_OBJECT][i].format("hourglass") for i in draw["prompt"]]
    ids = model.tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt").input_ids
    encoded = model.text_encoder(ids).last_hidden_state
    table[token] = kept
    scheduler, pictured = model.schedule.noise.scheduler, (latents[draw["picture"]], draw["noise"], draw["timestep"])
    noisy = scheduler.add_noise(*pictured)
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(*pictured) if v else draw["noise"]
    return functional.mse_loss(model.denoiser(noisy, draw["timestep"], encoded).sample, target).item()


async def test_a_word_of_several_tokens(engine: AttackEngine, unit_of: UnitOf) -> None:
    observations, (finding,), _ = await attacked(engine, unit_of("reference", steps=2, batch_size=2, tokens=3))
    assert list(finding.embedding.shape) == [3, 64]
    rows = np.frombuffer(finding.embedding.values, "<f4").reshape(3, 64)
    assert len(np.unique(rows, axis=0)) == 3
    assert observations[0].status == SAMPLE_STATUS_SCORED


async def test_a_long_run_is_told_in_few_words(
    engine: AttackEngine, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench, "TRACE_POINTS", 10)
    monkeypatch.setattr(workbench, "REPORTS", 10)
    _, (finding,), progress = await attacked(engine, unit_of("reference", steps=25, batch_size=1))
    assert len(finding.losses) == 9
    assert finding.steps == 25
    assert [item.step for item in progress] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert all(item.steps == 25 for item in progress)


async def test_a_model_that_answers_nan_is_unscored(
    engine: AttackEngine, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def diverging(*given: Any) -> tuple[torch.Tensor, ...]:
        factor = math.nan if next(calls) == 2 else 1
        return tuple(each * factor for each in losses_and_gradient(*given))

    monkeypatch.setattr(ti, "losses_and_gradient", diverging)
    observations, (finding,), _ = await attacked(engine, unit_of("reference", cases=3, steps=5, batch_size=2))
    assert len(observations) == 3
    for observation in observations:
        assert observation.status == SAMPLE_STATUS_UNSCORED
        assert observation.reason == "the gradient was not finite at step 3 of 5"
        assert not observation.judgements
    assert len(finding.losses) == 2
    assert np.isfinite(np.frombuffer(finding.embedding.values, "<f4")).all()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of a hourglass", "a photo of a <learned>"),
        ("a photo of a Sandglass, red", "a photo of a <learned>, red"),
        ("hourglass and hourglass.", "<learned> and <learned>."),
        ("an egg timer on a page", "an <learned> on a page"),
        ("((hourglass:1.2)), hourglass's", "(( <learned>:1.2)), <learned> 's"),
    ],
)
def test_the_placeholder_takes_the_place_of_the_concepts_words(prompt: str, expected: str) -> None:
    concept = Concept(name="hourglass", names=["hourglass", "sandglass", "egg", "egg timer"])
    assert ti.with_placeholder(prompt, concept) == expected


async def test_spaces_around_the_word_leave_the_other_tokens_alone(catalogue: Catalogue) -> None:
    model = load_model(catalogue, "reference", torch.device("cpu"), torch.float32)
    named, blank = (
        model.tokenizer(text, add_special_tokens=False).input_ids for text in ("((hourglass", "(( hourglass")
    )
    assert named == blank


async def test_a_case_whose_held_out_prompt_has_no_name_is_not_applicable(
    engine: AttackEngine, unit_of: UnitOf
) -> None:
    unit = unit_of("reference", cases=2, steps=1, batch_size=1)
    unit.cases[0].held_out_prompt = "something that measures time"
    unit.cases[1].guidance_scale = 1.0
    observations, findings, _ = await attacked(engine, unit)
    by_case = {observation.case_index: observation for observation in observations}
    assert by_case[0].status == SAMPLE_STATUS_NOT_APPLICABLE
    assert by_case[0].reason == ti.UNNAMED
    assert by_case[1].status == SAMPLE_STATUS_SCORED
    assert len(findings) == 1
    # Nothing is learned where no case has a place for it.
    unit.cases[1].held_out_prompt = ""
    observations, findings, _ = await attacked(engine, unit)
    assert [observation.status for observation in observations] == [SAMPLE_STATUS_NOT_APPLICABLE] * 2
    assert not findings


@pytest.mark.parametrize("prompt", ["a photo of a ring", "hourglasses", "a myhourglass", ""])
def test_a_prompt_without_the_concept_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        ti.with_placeholder(prompt, Concept(name="hourglass", names=["hourglass"]))
    assert error.value.violations[0].field == "unit.cases.held_out_prompt"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("picture_digests", lambda concept: concept.picture_digests.__delitem__(slice(1, None))),
        (
            "held_out_prompts",
            lambda concept: concept.held_out_prompts.extend(
                template.replace("{}", "{concept}") for template in ti.TEMPLATES[CONCEPT_KIND_OBJECT]
            ),
        ),
        ("initial_token", lambda concept: setattr(concept, "initial_token", "shape of things")),
    ],
)
async def test_a_concept_that_cannot_be_learned_is_refused(
    engine: AttackEngine, unit_of: UnitOf, field: str, change: Callable[[Concept], None]
) -> None:
    unit = unit_of("reference", steps=1, batch_size=1)
    change(unit.target.concept)
    with pytest.raises(InvalidRequestError) as error:
        await attacked(engine, unit)
    assert error.value.violations[0].field == f"unit.target.concept.{field}"


async def test_without_an_initial_word_it_starts_from_the_vocabularys_mean(
    engine: AttackEngine, unit_of: UnitOf, catalogue: Catalogue
) -> None:
    unit = unit_of("reference", steps=1, batch_size=1, learning_rate=1e-6, tokens=1)
    unit.target.concept.initial_token = ""
    _, (finding,), _ = await attacked(engine, unit)
    model = load_model(catalogue, "reference", torch.device("cpu"), torch.float32)
    mean = model.text_encoder.get_input_embeddings().weight.mean(0).numpy()
    np.testing.assert_allclose(np.frombuffer(finding.embedding.values, "<f4"), mean, atol=2e-6)


async def test_only_the_first_half_of_the_pictures_is_read(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("reference", steps=2, batch_size=4)
    _, (whole,), _ = await attacked(engine, unit)
    half = len(unit.target.concept.picture_digests) // 2
    for index in range(half, 2 * half):
        unit.target.concept.picture_digests[index] = "0" * 64
    _, (first_half,), _ = await attacked(engine, unit)
    assert first_half == whole
