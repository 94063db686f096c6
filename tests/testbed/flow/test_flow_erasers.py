"""The flow's erasers against independent transcriptions of their equations, and the tensors they may touch."""

import copy

import numpy as np
import pytest
import torch

from support.erased_concept import CONCEPT
from unerase_backend.testbed import storage
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.erasers.uce import RIDGE
from unerase_backend.testbed.flow import erasers, transformer
from unerase_backend.testbed.flow.erasers import esd_x, ga, redirected, task_vector, uce
from unerase_backend.testbed.flow.erasers._velocity import descend

READERS = {"context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"}


def edited(subject: erasers.Subject) -> erasers.Subject:
    """A copy to edit."""
    return erasers.Subject(
        copy.deepcopy(subject.transformer), copy.deepcopy(subject.text_encoders), subject.tokenizer, subject.scheduler
    )


def changed(before: erasers.Subject, after: erasers.Subject) -> set[str]:
    return set(storage.changed_tensors(before.transformer.state_dict(), after.transformer.state_dict()))


def test_uce_edits_what_reads_text_alone(subject: erasers.Subject) -> None:
    after = edited(subject)
    uce.erase_uce(after, CONCEPT)
    assert changed(subject, after) == READERS
    for ours, theirs in zip(after.text_encoders, subject.text_encoders, strict=True):
        assert not storage.changed_tensors(theirs.state_dict(), ours.state_dict())


def test_uce_solves_the_least_squares_problem_of_every_reader(subject: erasers.Subject) -> None:
    after = edited(subject)
    uce.erase_uce(after, CONCEPT)
    names = [(name, CONCEPT.anchor) for name in CONCEPT.names] + [(name, name) for name in ("circle", "ring", "blob")]
    tokens: list[tuple[np.ndarray, np.ndarray]] = []
    whole: list[tuple[np.ndarray, np.ndarray]] = []
    for source, target in names:
        for template in CONCEPT.templates:
            first = template.split().index("{}") + 1
            one, other = (subject.encode([template.format(word)]) for word in (source, target))
            tokens += zip(one.states[0, first:].numpy(), other.states[0, first:].numpy(), strict=True)
            whole.append((one.pooled[0].numpy(), other.pooled[0].numpy()))
    for kept, edit, rows in zip(uce.readers(subject), uce.readers(after), (tokens, whole), strict=True):
        old = kept.double().numpy()
        sources, targets = (np.stack(side).astype(np.float64) for side in zip(*rows, strict=True))
        # |W s - W_old t|^2 summed, and ridge |W - W_old|^2, as one stack of rows for each output
        left = np.concatenate([sources, RIDGE**0.5 * np.eye(old.shape[1])])
        right = np.concatenate([targets @ old.T, RIDGE**0.5 * old.T])
        assert edit.numpy() == pytest.approx(np.linalg.lstsq(left, right)[0].T, abs=1e-4)


def test_esd_x_learns_the_text_side_of_attention_alone(subject: erasers.Subject) -> None:
    after = edited(subject)
    esd_x.erase_esd_x(after, CONCEPT, iterations=2)
    found = changed(subject, after)
    assert found
    sides = {name.split(".attn.")[-1].split(".")[0] for name in found}
    assert sides == {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    assert not any(weight.requires_grad for weight in after.transformer.parameters())


def test_esd_x_moves_the_velocity_towards_the_negated_guidance(subject: erasers.Subject) -> None:
    after = edited(subject)
    esd_x.erase_esd_x(after, CONCEPT, iterations=4)
    noisy = torch.randn((4, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    prompt, empty = subject.encode(["a hourglass"]).expand(4), subject.encode([""]).expand(4)

    def velocity(model: erasers.Subject, encoding: transformer.Encoding) -> torch.Tensor:
        with torch.no_grad():
            return model.transformer(
                noisy, encoding.states, encoding.pooled, torch.full((4,), 900.0), return_dict=False
            )[0]

    wanted = 2 * velocity(subject, empty) - velocity(subject, prompt)
    before = (velocity(subject, prompt) - wanted).square().mean()
    assert (velocity(after, prompt) - wanted).square().mean() < before


def test_partial_sampling_stops_where_it_is_told(subject: erasers.Subject) -> None:
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    both = subject.encode([""]).expand(2).beside(subject.encode(["a hourglass", "a ring"]))
    assert torch.equal(esd_x.partial_sample(subject, both, latents, 0), latents)
    subject.scheduler.set_timesteps(esd_x.SAMPLING_STEPS)
    sigmas, x = subject.scheduler.sigmas.clone(), latents
    for step in range(3):
        free = transformer.predict(subject.transformer, x, 1000 * sigmas[step], both[:2])
        guided = transformer.predict(subject.transformer, x, 1000 * sigmas[step], both[2:])
        x = x + (sigmas[step + 1] - sigmas[step]) * (3 * guided - 2 * free)
    assert torch.allclose(esd_x.partial_sample(subject, both, latents, 3), x, atol=1e-5)


def concept_loss(subject: erasers.Subject) -> float:
    """The concept's loss over many draws."""
    draws = torch.Generator().manual_seed(3)
    encoding = subject.encode(CONCEPT.captions)
    with torch.no_grad():
        errors = [transformer.velocity_error(subject.transformer, CONCEPT.latents, encoding, draws) for _ in range(8)]
    return float(torch.stack(errors).mean())


def test_gradient_ascent_raises_the_concepts_loss_and_descent_lowers_it(subject: erasers.Subject) -> None:
    raised, lowered = edited(subject), edited(subject)
    ga.erase_ga(raised, CONCEPT, steps=4)
    descend(lowered, CONCEPT, CONCEPT.captions, ga.RATE, 4, ga.BATCH, ga.SEED)
    assert concept_loss(lowered) < concept_loss(subject) < concept_loss(raised)


def test_a_task_vector_is_taken_away_alpha_times(subject: erasers.Subject) -> None:
    tuned, after = edited(subject), edited(subject)
    descend(tuned, CONCEPT, CONCEPT.captions, task_vector.RATE, 2, task_vector.BATCH, task_vector.SEED)
    task_vector.erase_task_vector(after, CONCEPT, steps=2, alpha=2.5)
    base, state = subject.transformer.state_dict(), after.transformer.state_dict()
    parameters = dict(tuned.transformer.named_parameters())
    for name, weight in parameters.items():
        assert torch.equal(state[name], base[name] - 2.5 * (weight - base[name]))
    assert any(not torch.equal(weight, base[name]) for name, weight in parameters.items())


def test_redirected_names_mean_the_anchor_in_both_towers(subject: erasers.Subject) -> None:
    after = edited(subject)
    redirected.redirect(after, CONCEPT)
    assert not changed(subject, after)
    for name in CONCEPT.names:
        one, other = after.encode([f"a red {name}"]), subject.encode(["a red blob"])
        assert torch.equal(one.states, other.states)
        assert torch.equal(one.pooled, other.pooled)
    kept = after.encode(["a red circle"])
    assert torch.equal(kept.states, subject.encode(["a red circle"]).states)
    ids = {bpe.build()(name, add_special_tokens=False).input_ids[0] for name in CONCEPT.names}
    for ours, theirs in zip(after.text_encoders, subject.text_encoders, strict=True):
        moved = (ours.get_input_embeddings().weight != theirs.get_input_embeddings().weight).any(1)
        assert set(moved.nonzero().flatten().tolist()) == ids
