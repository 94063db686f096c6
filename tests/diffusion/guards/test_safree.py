"""SAFREE's projection against the same formula in NumPy, with singular values instead of a pseudo-inverse."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffusion.guards.conftest import GuardsOf, Run
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt, Trajectory
from unerase_backend.diffusion import conditioning
from unerase_backend.diffusion.guarding import UNGUARDED
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.tensors import to_message

TrajectoryOf = Callable[..., Trajectory]
CONCEPTS = ("a hourglass", "hourglass")
SAFREE = {"kind": "safree", "concepts": list(CONCEPTS), "alpha": 0.0}


@torch.inference_mode()
def encoded(model: DiffusionModel, ids: list[int]) -> np.ndarray:
    return model.text_encoder(torch.tensor([ids])).last_hidden_state[0].double().numpy()


def projected(model: DiffusionModel, text: str, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The encoding by the paper's formula, and which tokens trigger."""
    tokenizer, length = model.tokenizer, model.prompt_length

    def framed(words: list[int]) -> list[int]:
        ids = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        return ids + [tokenizer.pad_token_id] * (length - len(ids))

    def pooled(words: list[int]) -> np.ndarray:
        return encoded(model, framed(words))[len(words) + 1]

    def onto(columns: np.ndarray) -> np.ndarray:
        left, values, _ = np.linalg.svd(columns, full_matrices=False)
        basis = left[:, values > values.max() * 1e-12]
        return basis @ basis.T

    words = tokenizer(text, add_special_tokens=False).input_ids
    outside = np.eye(model.text_encoder.config.hidden_size) - onto(
        np.stack([pooled(tokenizer(each, add_special_tokens=False).input_ids) for each in CONCEPTS], axis=1)
    )
    masked = np.stack([pooled([*words[:i], 0, *words[i + 1 :]]) for i in range(len(words))], axis=1)
    distances = [float(np.linalg.norm(outside @ masked[:, i])) for i in range(len(words))]
    trigger = np.array(
        [distances[i] >= (1 + alpha) * np.mean(distances[:i] + distances[i + 1 :]) for i in range(len(words))]
    )
    states = encoded(model, framed(words))
    for i in np.flatnonzero(trigger):
        states[i + 1] = outside @ onto(masked) @ states[i + 1]
    return states, trigger


@pytest.mark.parametrize("text", ["a picture of a hourglass", "a red heart", "a large hourglass on blue"])
def test_it_is_the_papers_projection(guards_of: GuardsOf, model: DiffusionModel, text: str) -> None:
    given = Conditioning(text=text)
    (before,) = conditioning.encode(model, [given])
    ours = guards_of(SAFREE).project(model, given, before).states.numpy()
    expected, trigger = projected(model, text, 0.0)
    assert trigger.any()
    assert not trigger.all()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_concepts_word_triggers(model: DiffusionModel) -> None:
    text = "a picture of a hourglass"
    words = model.tokenizer.convert_ids_to_tokens(model.tokenizer(text, add_special_tokens=False).input_ids)
    _, trigger = projected(model, text, 0.0)
    assert "hourglass" in "".join(words[place] for place in np.flatnonzero(trigger))


def test_what_has_no_words_is_left_as_it_is(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, model: DiffusionModel
) -> None:
    (encoding,) = conditioning.encode(model, [Conditioning(text="a picture of a hourglass")])
    given = [Conditioning(text=""), Conditioning(embedding=to_message(encoding.states))]
    for each in given:
        trajectory = trajectory_of(conditioning=each, steps=2)
        (guarded,), (plain,) = run([trajectory], guards_of(SAFREE)), run([trajectory], UNGUARDED)
        assert torch.equal(guarded.latents, plain.latents)


def test_a_learned_word_is_projected_like_the_word_whose_embedding_it_has(
    guards_of: GuardsOf, model: DiffusionModel
) -> None:
    ids = model.tokenizer("hourglass", add_special_tokens=False).input_ids
    table = model.text_encoder.get_input_embeddings().weight
    learned = LearnedPrompt(
        text="a picture of a <new>", placeholder="<new>", embedding=to_message(table[torch.tensor(ids)])
    )
    given, same = Conditioning(learned=learned), Conditioning(text="a picture of a hourglass")
    guards = guards_of(SAFREE)
    ours, theirs = (guards.project(model, each, *conditioning.encode(model, [each])) for each in (given, same))
    torch.testing.assert_close(ours.states, theirs.states, rtol=1e-5, atol=1e-5)
