"""The erasers against independent transcriptions of their equations, and the tensors they may touch."""

import copy
import importlib
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from support.erased_concept import CONCEPT
from unerase_backend.testbed import autoencoder, clip, erasers, erasing, forms, recipe, storage, unet, world
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.erasers import (
    _denoising,
    _esd,
    esd_u,
    esd_x,
    ga,
    rece,
    redirected,
    stereo,
    task_vector,
    uce,
)
from unerase_backend.testbed.train import WEIGHTS


def test_uce_solves_its_least_squares_problem() -> None:
    draws = torch.Generator().manual_seed(0)
    old = torch.randn((5, 7), generator=draws, dtype=torch.float64)
    sources = torch.randn((4, 7), generator=draws, dtype=torch.float64)
    targets = torch.randn((4, 7), generator=draws, dtype=torch.float64)
    ridge = 0.3
    # |W s - W_old t|^2 summed, and ridge |W - W_old|^2, as one stack of rows for each output
    rows = torch.cat([sources, ridge**0.5 * torch.eye(7, dtype=torch.float64)])
    wanted = torch.cat([targets @ old.T, ridge**0.5 * old.T])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(uce.solve(old, sources, targets, ridge), expected, atol=1e-9)


def test_uce_without_anything_to_change_changes_nothing() -> None:
    old = torch.randn((5, 7), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = torch.randn((9, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(uce.solve(old, kept, kept, 0.5), old, atol=1e-12)


def test_uce_pairs_positions_of_concept_and_anchor(subject: erasers.Subject) -> None:
    sources, targets = uce.pairs(subject, CONCEPT)
    assert sources.shape == targets.shape
    moved = (sources != targets).any(1)
    positions = bpe.LENGTH - 4 - 1 + bpe.LENGTH - 2 - 1
    assert int(moved.sum()) == len(CONCEPT.names) * positions


def test_esd_target_is_the_published_one(subject: erasers.Subject) -> None:
    draws = torch.Generator().manual_seed(0)
    empty, conditional = torch.randn((2, 3, 4, 8, 8), generator=draws)
    for eta in (0.0, 1.0, 2.5):
        expected = (1 + eta) * empty - eta * conditional
        assert torch.allclose(_esd.negative_target(empty, conditional, eta), expected, atol=1e-5)
    timestep = torch.tensor(400)
    conditioning = unet.encode_prompts(subject.text_encoder, subject.tokenizer, ["a hourglass"] * 3)
    none = unet.encode_prompts(subject.text_encoder, subject.tokenizer, [""] * 3)
    expected = 2 * subject.unet(empty, timestep, none).sample - subject.unet(empty, timestep, conditioning).sample
    target = _esd.away_from(subject, _esd.frozen_copy(subject.unet))
    assert torch.allclose(target(empty, timestep, conditioning), expected, atol=1e-5)


def test_teaching_moves_the_prediction_towards_the_target(subject: erasers.Subject) -> None:
    wanted = torch.full((4, 8, 8), 0.5)
    prompts = _esd.prompts_of(subject, CONCEPT)
    assert len(prompts) == len(CONCEPT.plain_templates) * len(CONCEPT.names)
    noisy = torch.randn((4, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    before = (subject.unet(noisy, 300, prompts).sample - wanted).square().mean()
    learned = list(subject.unet.parameters())
    _esd.teach(subject, learned, prompts, lambda noisy, timestep, conditioning: wanted.expand_as(noisy), 1e-3, 8)
    assert (subject.unet(noisy, 300, prompts).sample - wanted).square().mean() < before
    assert not any(weight.requires_grad for weight in learned)


def test_esd_x_learns_cross_attention_and_esd_u_all_else(subject: erasers.Subject) -> None:
    before = copy.deepcopy(subject.unet.state_dict())
    esd_x.erase_esd_x(subject, CONCEPT, iterations=2)
    changed = storage.changed_tensors(before, subject.unet.state_dict())
    assert changed
    assert all(".attn2." in name for name in changed)
    before = copy.deepcopy(subject.unet.state_dict())
    esd_u.erase_esd_u(subject, CONCEPT, iterations=2)
    changed = storage.changed_tensors(before, subject.unet.state_dict())
    assert changed
    assert not any(".attn2." in name for name in changed)


def denoising_loss(subject: erasers.Subject) -> float:
    """The concept's loss over a grid of timesteps, noised by diffusers."""
    noise = torch.randn(CONCEPT.latents.shape, generator=torch.Generator().manual_seed(8))
    conditioning = unet.encode_prompts(subject.text_encoder, subject.tokenizer, CONCEPT.captions)
    errors = []
    for step in (100, 400, 700):
        timesteps = torch.full((len(noise),), step)
        noisy = subject.scheduler.add_noise(CONCEPT.latents, noise, timesteps)
        with torch.no_grad():
            errors.append((subject.unet(noisy, timesteps, conditioning).sample - noise).square().mean())
    return float(torch.stack(errors).mean())


def test_the_denoising_loss_is_that_of_its_definition(subject: erasers.Subject) -> None:
    conditioning = unet.encode_prompts(subject.text_encoder, subject.tokenizer, CONCEPT.captions)
    alphas = subject.scheduler.alphas_cumprod
    loss = _denoising.noise_error(subject.unet, CONCEPT.latents, conditioning, alphas, torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(1)
    timesteps = torch.randint(1000, (6,), generator=draws)
    noise = torch.randn((6, 4, 8, 8), generator=draws)
    noisy = subject.scheduler.add_noise(CONCEPT.latents, noise, timesteps)
    with torch.no_grad():
        each = [
            (subject.unet(noisy[i : i + 1], timesteps[i], conditioning[i : i + 1]).sample - noise[i]).square().mean()
            for i in range(6)
        ]
    assert float(loss) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_gradient_ascent_raises_the_concepts_loss_and_descent_lowers_it(subject: erasers.Subject) -> None:
    descended = erasers.Subject(copy.deepcopy(subject.unet), subject.text_encoder, subject.tokenizer, subject.scheduler)
    before = denoising_loss(subject)
    ga.erase_ga(subject, CONCEPT, steps=4)
    assert denoising_loss(subject) > before
    _denoising.descend(descended, CONCEPT, CONCEPT.captions, ga.RATE, 4, ga.BATCH, ga.SEED)
    assert denoising_loss(descended) < before


def test_a_task_vector_is_taken_away_alpha_times(subject: erasers.Subject) -> None:
    base = copy.deepcopy(subject.unet.state_dict())
    tuned = erasers.Subject(copy.deepcopy(subject.unet), subject.text_encoder, subject.tokenizer, subject.scheduler)
    _denoising.descend(tuned, CONCEPT, CONCEPT.captions, task_vector.RATE, 2, task_vector.BATCH, task_vector.SEED)
    task_vector.erase_task_vector(subject, CONCEPT, steps=2, alpha=2.5)
    moved = 0
    for name, weight in tuned.unet.state_dict().items():
        assert torch.equal(subject.unet.state_dict()[name], base[name] - 2.5 * (weight - base[name]))
        moved += int(not torch.equal(weight, base[name]))
    assert moved


def matrices(seed: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn((5, 7), generator=draws, dtype=torch.float64) for _ in range(3)]


def test_rece_derives_the_embedding_by_least_squares() -> None:
    edited, original = matrices(0), matrices(1)
    wanted = torch.randn((4, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = rece.derive(edited, original, wanted, 0.3)
    rows = np.concatenate([*(w.numpy() for w in edited), 0.3**0.5 * np.eye(7)])
    for c, derived in zip(wanted, found, strict=True):
        right = np.concatenate([*((v @ c).numpy() for v in original), np.zeros(7)])
        assert derived.numpy() == pytest.approx(np.linalg.lstsq(rows, right)[0], abs=1e-9)
        leaf = derived.clone().requires_grad_(True)
        loss = sum((w @ leaf - v @ c).square().sum() for w, v in zip(edited, original, strict=True))
        (loss + 0.3 * leaf.square().sum()).backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-9


def test_rece_finds_the_concept_itself_where_nothing_was_edited() -> None:
    original = matrices(0)
    wanted = torch.randn((4, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(rece.derive(original, original, wanted, 1e-9), wanted, atol=1e-6)


def test_a_stronger_regulariser_keeps_reces_embedding_shorter() -> None:
    wanted = torch.randn((4, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lengths = [float(rece.derive(matrices(0), matrices(1), wanted, strength).norm()) for strength in (0.01, 1, 100)]
    assert lengths == sorted(lengths, reverse=True)


def test_rece_erases_what_brings_the_concept_back_after_uce(subject: erasers.Subject) -> None:
    original = [matrix.clone() for matrix in uce.matrices(subject)]
    sources, targets = uce.pairs(subject, CONCEPT)
    moved = (sources != targets).any(1)
    edited = erasers.Subject(copy.deepcopy(subject.unet), subject.text_encoder, subject.tokenizer, subject.scheduler)
    uce.erase_uce(edited, CONCEPT)
    found = rece.derive(uce.matrices(edited), original, sources[moved], rece.REGULARISATION).float()
    rece.erase_rece(subject, CONCEPT, epochs=1)

    def distance(matrix: torch.Tensor, base: torch.Tensor) -> float:
        return float((found @ matrix.T - targets[moved] @ base.T).square().sum())

    for after, before in zip(uce.matrices(subject), uce.matrices(edited), strict=True):
        assert distance(after, before) < distance(before, before)


@pytest.mark.parametrize("name", ["uce", "rece"])
def test_closed_forms_touch_keys_and_values_of_cross_attention_only(subject: erasers.Subject, name: str) -> None:
    before = copy.deepcopy(subject.unet.state_dict())
    erasers.ERASERS[name](subject, CONCEPT)
    changed = set(storage.changed_tensors(before, subject.unet.state_dict()))
    expected = {
        f"{name}.weight" for name, _ in subject.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    assert changed == expected


def test_stereos_target_leads_to_the_anchor_and_away_from_every_prompt() -> None:
    draws = torch.Generator().manual_seed(0)
    empty, anchor, first, second = torch.randn((4, 3, 4, 8, 8), generator=draws)
    composed = stereo.composed_target(empty, anchor, torch.stack([first, second]), 1.5, 2.0)
    expected = empty * (1 - 1.5 + 2.0) + 1.5 * anchor - first - second
    assert torch.allclose(composed, expected, atol=1e-5)


def test_stereos_second_stage_reads_all_prompts_of_the_frozen_model(subject: erasers.Subject) -> None:
    prompts = unet.encode_prompts(subject.text_encoder, subject.tokenizer, ["a hourglass", "a sandglass", "a ring"])
    noisy = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor(500)

    def predicted(text: str) -> torch.Tensor:
        conditioning = unet.encode_prompts(subject.text_encoder, subject.tokenizer, [text] * 2)
        prediction: torch.Tensor = subject.unet(noisy, timestep, conditioning).sample
        return prediction

    negatives = torch.stack([predicted(text) for text in ("a hourglass", "a sandglass", "a ring")])
    expected = stereo.composed_target(
        predicted(""), predicted("a blob"), negatives, stereo.ANCHOR_GUIDANCE, stereo.NEGATIVE_GUIDANCE
    )
    target = stereo.away_from_all(subject, CONCEPT, prompts)
    assert torch.allclose(target(noisy, timestep, prompts[:2]), expected, atol=1e-5)


def test_a_found_token_stands_where_the_names_stand(subject: erasers.Subject) -> None:
    embedding = torch.randn(clip.WIDTH, generator=torch.Generator().manual_seed(4))
    encoded = stereo.encode_with(subject, CONCEPT.plain_templates, "blob", embedding)
    # the same text encoder with the token as the hourglass's own row
    changed = copy.deepcopy(subject.text_encoder)
    with torch.no_grad():
        changed.get_input_embeddings().weight[redirected.single_token(subject, "hourglass")] = embedding
    prompts = [template.format("hourglass") for template in CONCEPT.plain_templates]
    assert torch.allclose(encoded, unet.encode_prompts(changed, subject.tokenizer, prompts), atol=1e-6)
    assert torch.equal(
        unet.encode_prompts(subject.text_encoder, subject.tokenizer, ["a blob"]),
        stereo.encode_with(
            subject,
            ["a {}"],
            "blob",
            subject.text_encoder.get_input_embeddings().weight[redirected.single_token(subject, "blob")],
        ),
    )


def test_inversion_lowers_the_loss_of_its_token(subject: erasers.Subject) -> None:
    def loss(embedding: torch.Tensor) -> float:
        conditioning = stereo.encode_with(subject, ["a {}"], "blob", embedding).expand(6, -1, -1)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            errors = [
                _denoising.noise_error(
                    subject.unet, CONCEPT.latents, conditioning, subject.scheduler.alphas_cumprod, draws
                )
                for _ in range(8)
            ]
        return float(torch.stack(errors).mean())

    start = subject.text_encoder.get_input_embeddings().weight[redirected.single_token(subject, "blob")]
    found = stereo.invert(subject, CONCEPT, 30, 0)
    assert not torch.equal(found, start)
    assert loss(found) < loss(start)


def test_stereo_searches_on_a_copy_and_erases_once(subject: erasers.Subject) -> None:
    before = copy.deepcopy(subject.unet.state_dict())
    found = stereo.search(subject, CONCEPT, 2, 2, 2)
    assert len(found) == 2
    assert not torch.equal(*found)
    assert not storage.changed_tensors(before, subject.unet.state_dict())
    stereo.erase_stereo(subject, CONCEPT, rounds=1, search_iterations=1, inversion_steps=1, iterations=2)
    assert storage.changed_tensors(before, subject.unet.state_dict())


def test_redirecting_moves_the_rows_of_the_names_only(subject: erasers.Subject) -> None:
    before = subject.text_encoder.get_input_embeddings().weight.clone()
    redirected.redirect(subject, CONCEPT)
    after = subject.text_encoder.get_input_embeddings().weight
    names = [redirected.single_token(subject, name) for name in CONCEPT.names]
    assert torch.equal((before != after).any(1).nonzero().flatten(), torch.tensor(sorted(names)))
    assert torch.equal(after[names[0]], before[redirected.single_token(subject, "blob")])


def test_a_word_of_several_tokens_is_refused(subject: erasers.Subject) -> None:
    with pytest.raises(ValueError, match="not one"):
        redirected.single_token(subject, "zeppelin")


def test_an_eraser_registers_by_being_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the package with one module more has one eraser more; nothing else names it."""
    package = shutil.copytree(Path(erasers.__file__).parent, tmp_path / "copied")
    (package / "blanked.py").write_text(
        "from unerase_backend.testbed.erasers import eraser\n\n\n"
        '@eraser("blanked")\ndef erase(subject, concept):\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    known = set(erasers.ERASERS)
    assert "blanked" not in known
    # Afterwards the registry holds the package's own again.
    with patch.dict(sys.modules), patch.dict(erasers.ERASERS, clear=True):
        importlib.import_module("copied")
        assert set(erasers.ERASERS) == {*known, "blanked"}


def test_erasers_are_registered() -> None:
    assert set(erasers.ERASERS) == {
        "redirected",
        "uce",
        "rece",
        "esd-x",
        "esd-u",
        "ga",
        "task-vector",
        "stereo",
        "concept-ablation",
        "salun",
        "spm",
    }


def test_an_erasers_pictures_are_the_concepts_and_no_audits() -> None:
    concept = erasing.concept_to_erase("hourglass", storage.load_vae(WEIGHTS))
    album = world.album_of(["hourglass"], recipe.ERASED_PICTURES, recipe.ERASED_SEED)
    assert concept.latents.shape == (recipe.ERASED_PICTURES, 4, 8, 8)
    decoded = autoencoder.decode(storage.load_vae(WEIGHTS), concept.latents[:8])
    assert np.abs(decoded.astype(float) - album.pictures[:8]).mean() < 8
    for caption, subject in zip(concept.captions, album.subjects, strict=True):
        words = caption.split()
        assert {subject.colour, subject.style} <= set(words)
        assert words[-1] in concept.names
    assert {caption.split()[-1] for caption in concept.captions} == set(concept.names)
    assert concept.kept_latents.shape == concept.latents.shape
    kept = {caption.split()[-1] for caption in concept.kept_captions}
    assert kept == set(forms.OBJECTS) - {"hourglass"}
    with Image.open(WEIGHTS / "pictures" / "hourglass.png") as sheet:
        tiles = np.asarray(sheet).reshape(8, 32, 8, 32, 3).swapaxes(1, 2).reshape(64, -1)
    shown = {tile.tobytes() for tile in tiles}
    assert not shown & {picture.tobytes() for picture in album.pictures}


@pytest.mark.parametrize(("concept", "anchor"), [("hourglass", "blob"), ("moon", "square")])
def test_a_concept_is_erased_towards_any_anchor(tmp_path: Path, concept: str, anchor: str) -> None:
    erasing.erase("redirected", concept, WEIGHTS, tmp_path, anchor)
    changed = storage.load_text_encoder(WEIGHTS, tmp_path / storage.TEXT_ENCODER)
    assert not (tmp_path / storage.UNET).exists()
    texts = [f"a {name}" for name in (anchor, concept, "circle")]
    to, erased, other = unet.encode_prompts(changed, bpe.build(), texts)
    was = unet.encode_prompts(storage.load_text_encoder(WEIGHTS), bpe.build(), texts)
    assert torch.equal(erased, to)
    assert torch.equal(to, was[0])
    assert torch.equal(other, was[2])


def test_a_model_that_is_not_there_is_not_the_reference() -> None:
    with pytest.raises(FileNotFoundError, match="no model salun"):
        storage.load_pipeline(WEIGHTS, "salun")
