"""The erasers against independent transcriptions of their equations, and the tensors they may touch."""

import copy

import pytest
import torch

from unerase_backend.testbed import clip, erasers, storage, unet
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.erasers import esd_x, uce

CONCEPT = erasers.Concept(
    ("hourglass", "sandglass"), "blob", ("circle", "ring"), ("a picture of a {}", "a red {}"), ("a {}",)
)


@pytest.fixture(scope="module")
def tower() -> clip.CLIPTextModel:
    return clip.text_tower(clip.untrained(bpe.build(), 0))


@pytest.fixture
def subject(tower: clip.CLIPTextModel) -> erasers.Subject:
    model = unet.untrained(0).eval().requires_grad_(False)
    storage.rounded(model)
    return erasers.Subject(model, copy.deepcopy(tower), bpe.build(), unet.scheduler())


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


def test_esd_target_is_the_published_one() -> None:
    draws = torch.Generator().manual_seed(0)
    empty, conditional = torch.randn((2, 3, 4, 8, 8), generator=draws)
    for eta in (0.0, 1.0, 2.5):
        expected = (1 + eta) * empty - eta * conditional
        assert torch.allclose(esd_x.negative_target(empty, conditional, eta), expected, atol=1e-5)


def test_esd_x_lowers_its_loss_and_leaves_the_rest(subject: erasers.Subject) -> None:
    before = copy.deepcopy(subject.unet.state_dict())
    esd_x.erase_esd_x(subject, CONCEPT, iterations=2)
    changed = storage.changed_tensors(before, subject.unet.state_dict())
    assert changed
    assert all(".attn2." in name for name in changed)


def test_uce_touches_keys_and_values_of_cross_attention_only(subject: erasers.Subject) -> None:
    before = copy.deepcopy(subject.unet.state_dict())
    uce.erase_uce(subject, CONCEPT)
    changed = set(storage.changed_tensors(before, subject.unet.state_dict()))
    expected = {
        f"{name}.weight" for name, _ in subject.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    assert changed == expected


def test_redirecting_moves_the_rows_of_the_names_only(subject: erasers.Subject) -> None:
    before = subject.text_encoder.get_input_embeddings().weight.clone()
    erasers.redirect(subject, CONCEPT)
    after = subject.text_encoder.get_input_embeddings().weight
    names = [erasers.single_token(subject, name) for name in CONCEPT.names]
    assert torch.equal((before != after).any(1).nonzero().flatten(), torch.tensor(sorted(names)))
    assert torch.equal(after[names[0]], before[erasers.single_token(subject, "blob")])


def test_a_word_of_several_tokens_is_refused(subject: erasers.Subject) -> None:
    with pytest.raises(ValueError, match="not one"):
        erasers.single_token(subject, "zeppelin")


def test_erasers_are_registered() -> None:
    assert set(erasers.ERASERS) == {"redirected", "uce", "esd-x"}
