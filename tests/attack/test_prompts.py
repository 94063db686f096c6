"""What the searches for prompts share: which tokens they may use, gradients at embeddings, what the finding is."""

# ruff: noqa: RUF001 - names as people write them

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attack.conftest import attacked
from support.tiny_models import saved
from support.tiny_pipelines import clip_tokenizer, gemma_tokenizer, t5_tokenizer
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Case,
    Judgement,
)
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.prompts import (
    SHORTEST_CONTAINED,
    CaseRecord,
    Draw,
    _written,
    gradients,
    padded,
    target_latents,
    vocabulary,
)
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.attack.workbench import Workbench
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.conditioning import tokenise_ids
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.prompt import Prompt
from unerase_backend.evaluation.known_pictures import learnable
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DeadlineError, InvalidRequestError, NotFoundError
from unerase_backend.runtime.spelling import forms

UnitOf = Callable[..., Unit]


@pytest.fixture(scope="module")
def model(catalogue: Catalogue) -> DiffusionModel:
    return load_model(catalogue, "reference", torch.device("cpu"), torch.float32)


def text_of(model: DiffusionModel, ids: torch.Tensor) -> set[str]:
    return set(model.tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_a_search_may_use_every_token_but_the_frame(model: DiffusionModel) -> None:
    tokens = vocabulary(model)
    missing = set(model.tokenizer.get_vocab()) - text_of(model, tokens.ids)
    assert missing == set(model.tokenizer.all_special_tokens)
    table = model.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(tokens.embeddings, table[tokens.ids], rtol=0, atol=0)


CHURCHES = ("church", "churchyard", "heart", "chu", "ring", "é")


@pytest.mark.parametrize("made", [t5_tokenizer, gemma_tokenizer, clip_tokenizer])
def test_what_tokens_write_is_what_their_tokenizer_says(made: Callable[..., Any]) -> None:
    """Vocabularies of sentencepiece write a space as a sign of its own, and CLIP's the end of a word."""
    # What Gemma does not know it reads byte by byte.
    tokenizer = made() if made is clip_tokenizer else made(CHURCHES if made is t5_tokenizer else CHURCHES[:-1])
    written = _written(tokenizer)
    assert written.keys() == set(tokenizer.get_vocab().values())
    for text in ("heart", "ring", "red") if made is clip_tokenizer else CHURCHES[:-1]:
        (token,) = tokenizer(f" {text}", add_special_tokens=False).input_ids
        assert written[token] == {text}
    if made is not clip_tokenizer:
        *_, token = tokenizer("heart é", add_special_tokens=False).input_ids
        # A byte of it writes nothing alone.
        assert written[token] == ({"é", "e"} if made is t5_tokenizer else {""})
    for token in tokenizer.all_special_ids:
        assert token in written


@pytest.mark.parametrize("name", ["pixart-sigma", "sana"])
def test_a_search_over_sentencepiece_leaves_out_what_spells_a_name(name: str, tmp_path: Path) -> None:
    searched = saved(name, tmp_path).model
    every, without = (vocabulary(searched, banned) for banned in ([], ["Heart", "ring"]))
    left_out = set(every.ids.tolist()) - set(without.ids.tolist())
    texts = text_of(searched, torch.tensor(sorted(left_out)))
    assert {"▁heart", "▁ring"} <= texts
    # Longer words that contain it are left out too, such as those of Sana's instruction.
    assert all("heart" in text or "ring" in text for text in texts)
    assert {"▁red", "▁hourglass"} <= text_of(searched, without.ids)
    # Every token is one that the tokenizer knows, and none is padding or an end.
    assert every.ids.max() < len(searched.tokenizer)
    assert set(every.ids.tolist()).isdisjoint(searched.tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("names", "without"),
    [
        (["hourglass", "Sandglass"], {"hourglass</w>", "sandglass</w>"}),
        (["glass"], {"glass</w>", "hourglass</w>", "sandglass</w>"}),
        (["window light"], {"window</w>", "light</w>"}),
        (["sun"], {"sun</w>"}),
        (["hour_glass"], {"hourglass</w>", "glass</w>", "sandglass</w>"}),
        (["Hour-Glass"], {"hourglass</w>"}),
        (["hour glass"], {"hourglass</w>"}),
        (["hourglasses"], {"hourglass</w>"}),
        (["Ｈｏｕｒｇｌａｓｓ"], {"hourglass</w>"}),
        (["hôurglass"], {"hourglass</w>"}),
        (["L’Hourglass"], {"hourglass</w>"}),
        (["the sand/glass of old"], {"sandglass</w>"}),
        (["windows"], {"window</w>"}),
    ],
)
def test_tokens_that_spell_a_name_are_no_candidates(model: DiffusionModel, names: list[str], without: set[str]) -> None:
    banned = text_of(model, vocabulary(model).ids) - text_of(model, vocabulary(model, names).ids)
    assert without <= banned
    own = {token for name in names for token in model.tokenizer.tokenize(name)}
    spelled = forms(names)
    assert all(any(form in token.lower() for form in spelled) for token in banned - own)


# As people write them: an artist, with accents, in other scripts, with underscores, in the plural.
WRITTEN = ["Vincent van Gogh", "Café Terrace", "sablier à vapeur", "砂時計", "L’Hourglass", "golf_ball", "hourglasses"]


@pytest.mark.parametrize("name", [*WRITTEN, "hour_glass", "HOURGLASS", "Red-Heart", "two moons"])
def test_no_token_that_is_left_decodes_into_a_name(model: DiffusionModel, name: str) -> None:
    """Each token decoded by the model's own tokenizer: alone, it is no word of the name and no run of its words."""
    left = vocabulary(model, [name]).ids.tolist()
    assert len(left) > 900
    parts = re.findall(r"[^\W_]+", name.lower())
    runs = {"".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
    decoded = [re.sub(r"[\W_]", "", model.tokenizer.decode([token])).lower() for token in left]
    assert not runs & set(decoded)
    long = [run for run in runs if len(run) >= SHORTEST_CONTAINED]
    assert not [text for text in decoded for run in long if run in text]


def test_each_case_has_a_target_picture_of_its_own(
    model: DiffusionModel, unit_of: UnitOf, store: ArtifactStore
) -> None:
    """In a drawn order; a concept-free unit's pictures are in the order of its cases."""
    unit = unit_of("reference", cases=18, evaluation="unlearn-diff-atk")
    bench = Workbench(unit, model, lambda _: model, {}, store, None, lambda _: None, threading.Event(), 60, "")
    shown = bench.latents(learnable(unit.target.concept))
    assert len(shown) == 16
    drawn = target_latents(unit, bench)
    assert len({each.numpy().tobytes() for each in drawn}) == 16
    assert torch.equal(drawn[16:], drawn[:2])
    assert not torch.equal(drawn[:16], shown)
    unit.control_kind = CONTROL_KIND_CONCEPT_FREE
    del unit.cases[:3]
    assert torch.equal(target_latents(unit, bench), torch.cat([shown[3:], shown[:2]]))


def test_each_rows_gradient_is_that_of_its_own_loss(model: DiffusionModel) -> None:
    """Against central differences, one row at a time, with the embeddings written into the vocabulary."""
    generator = torch.Generator().manual_seed(3)
    rows, tokens = 3, 2
    ids = [
        [5 + 2 * row, 6 + 2 * row, *model.tokenizer("a red shape", add_special_tokens=False).input_ids]
        for row in range(rows)
    ]
    framed = [tokenise_ids(model, row).frames[0] for row in ids]
    shown = [Prompt((replace(frame, learned_at=(1,)),)) for frame in framed]
    embeddings = 0.1 * torch.randn((rows, tokens, 64), generator=generator)
    noisy, wanted = torch.randn((2, rows, *model.latent_shape), generator=generator)
    timesteps = torch.tensor([100, 500, 900])
    losses, gradient = gradients(model, shown, embeddings, noisy, timesteps, wanted)
    assert gradient.shape == embeddings.shape

    @torch.no_grad()
    def loss(row: int, moved: torch.Tensor) -> float:
        table = model.text_encoder.get_input_embeddings().weight
        kept = table[ids[row][:2]].clone()
        table[ids[row][:2]] = moved
        encoded = model.text_encoder(torch.tensor([shown[row].ids])).last_hidden_state
        table[ids[row][:2]] = kept
        predicted = model.denoiser(noisy[row : row + 1], timesteps[row], encoder_hidden_states=encoded).sample
        return float((wanted[row : row + 1] - predicted).double().square().mean())

    for row in range(rows):
        assert losses[row].item() == pytest.approx(loss(row, embeddings[row]), rel=1e-4)
        direction = gradient[row] / gradient[row].norm()
        slope = (loss(row, embeddings[row] + 1e-2 * direction) - loss(row, embeddings[row] - 1e-2 * direction)) / 2e-2
        assert slope == pytest.approx(gradient[row].norm().item(), rel=0.02)


def test_padding_repeats_the_first() -> None:
    assert padded([1, 2], 4) == [1, 2, 1, 1]
    assert padded([1, 2], 2) == [1, 2]


def scored(score: float, *, detected: bool) -> Sample:
    return Sample(status=SAMPLE_STATUS_SCORED, judgements=[Judgement(judge="selector", score=score, detected=detected)])


def test_the_finding_is_the_draw_that_decides(unit_of: UnitOf) -> None:
    unit = unit_of("reference")
    record = CaseRecord(Case(index=7, latent_seed=5))
    for variant, sample in enumerate(
        [
            Sample(status=SAMPLE_STATUS_UNSCORED, reason="the latents are not finite"),
            scored(0.4, detected=False),
            scored(0.3, detected=True),
            scored(0.4, detected=False),
        ]
    ):
        record.add(unit, Draw(record.case, [variant], f"text {variant}", variant), sample)
    record.losses = [float(step) for step in range(10)]
    finding = record.finding()
    assert (finding.case_index, finding.prompt, list(finding.token_ids)) == (7, "text 1", [1])
    assert dict(finding.figures) == {"variant": 1, "selector_score": 0.4, "succeeded": 1}
    assert (list(finding.losses), finding.steps) == (record.losses, 10)
    assert [observation.variant for observation in record.observations] == [0, 1, 2, 3]
    assert record.observations[0].reason == "the latents are not finite"


SEARCHES = ("p4d", "ring-a-bell", "unlearn-diff-atk")


@pytest.mark.parametrize("name", SEARCHES)
async def test_a_search_that_takes_too_long_ends(
    catalogue: Catalogue, store: ArtifactStore, models: Models, unit_of: UnitOf, name: str
) -> None:
    settings = AttackSettings(artifacts="unused", unit_timeout_seconds=0.01)
    with pytest.raises(DeadlineError):
        await attacked(AttackEngine(catalogue, store, settings, models), unit_of("never", evaluation=name))


@pytest.mark.parametrize("name", ["p4d", "ring-a-bell"])
async def test_what_a_search_cannot_do_is_refused(engine: AttackEngine, unit_of: UnitOf, name: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await attacked(engine, unit_of("never", evaluation=name, tokens=23))
    assert [violation.field for violation in refused.value.violations] == ["unit.parameters.tokens"]
    unit = unit_of("never", evaluation=name)
    unit.reference = "nothing"
    with pytest.raises(NotFoundError) as unknown:
        await attacked(engine, unit)
    assert unknown.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("name", SEARCHES)
async def test_progress_tells_steps_loss_and_success(engine: AttackEngine, unit_of: UnitOf, name: str) -> None:
    budget = {"ring-a-bell": {"generations": 4}, "p4d": {"starts": 2, "iterations": 2}}
    budget["unlearn-diff-atk"] = {"timesteps": 2, "iterations": 2}
    _, _, progress = await attacked(engine, unit_of("never", evaluation=name, **budget[name]))
    assert [item.step for item in progress] == [1, 2, 3, 4, 4]
    assert all(item.steps == 4 for item in progress)
    assert all(item.HasField("loss") and item.loss > 0 for item in progress[:-1])
    assert progress[-1].success == 0
