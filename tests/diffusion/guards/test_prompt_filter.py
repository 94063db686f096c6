"""What a prompt filter reads of each kind of conditioning, and what it does with it."""

from collections.abc import Callable

import pytest
import torch

from diffusion.guards.conftest import GuardsOf, Run
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt, TokenIds, Trajectory
from unerase_backend.diffusion import conditioning
from unerase_backend.diffusion.guarding import UNGUARDED
from unerase_backend.diffusion.guards import prompt_filter
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import PreconditionError

TrajectoryOf = Callable[..., Trajectory]
REFUSING = {"kind": "prompt-filter", "words": ["hourglass", "sand clock"]}
REWRITING = {"kind": "prompt-filter", "expressions": ["hour ?glass"], "replacement": "heart"}


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("a picture of a hourglass", True),
        ("a Hourglass, red", True),
        ("a sand clock", True),
        ("a picture of hourglasses", False),
        ("sand beside a clock", False),
        ("", False),
    ],
)
def test_a_word_is_refused_as_a_whole_word(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, text: str, refused: bool
) -> None:
    (finished,) = run([trajectory_of(text, steps=1)], guards_of(REFUSING))
    assert finished.withheld == refused
    assert (finished.picture is None) == refused
    assert bool(finished.failure) == refused
    assert bool(finished.latents.numel()) != refused


def test_a_rewritten_prompt_is_the_prompt_that_it_becomes(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf
) -> None:
    (rewritten,) = run([trajectory_of("a picture of a hour glass")], guards_of(REWRITING))
    (meant,) = run([trajectory_of("a picture of a heart")], UNGUARDED)
    assert torch.equal(rewritten.latents, meant.latents)


def test_token_ids_are_read_as_they_are_decoded(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, model: DiffusionModel
) -> None:
    ids = model.tokenizer("a hourglass", add_special_tokens=False).input_ids
    given = Conditioning(token_ids=TokenIds(ids=ids))
    assert run([trajectory_of(conditioning=given, steps=1)], guards_of(REFUSING))[0].withheld
    other = Conditioning(token_ids=TokenIds(ids=model.tokenizer("a heart", add_special_tokens=False).input_ids))
    passed, plain = (run([trajectory_of(conditioning=other)], guards)[0] for guards in (guards_of(REFUSING), UNGUARDED))
    assert torch.equal(passed.latents, plain.latents)


def test_of_a_learned_word_the_words_around_it_are_read(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, model: DiffusionModel
) -> None:
    width = model.text_encoder.get_input_embeddings().embedding_dim
    embedding = to_message(torch.ones(1, width))

    def finished(text: str, guards: dict[str, object]) -> bool:
        learned = Conditioning(learned=LearnedPrompt(text=text, placeholder="<new>", embedding=embedding))
        return run([trajectory_of(conditioning=learned, steps=1)], guards_of(guards))[0].withheld

    assert not finished("a picture of a <new>", REFUSING)
    assert finished("a hourglass beside a <new>", REFUSING)
    assert not finished("a hourglass beside a <new>", REWRITING)
    # A rewriting that takes the learned word away leaves nothing that could be sampled.
    assert finished(
        "a <new> hourglass", {"kind": "prompt-filter", "expressions": [".*hourglass"], "replacement": "heart"}
    )


def test_an_embedding_has_no_words(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, model: DiffusionModel
) -> None:
    (encoded,) = conditioning.encode(model, [Conditioning(text="a picture of a hourglass")])
    given = Conditioning(embedding=to_message(encoded.states))
    (passed,) = run([trajectory_of(conditioning=given)], guards_of(REFUSING))
    (plain,) = run([trajectory_of("a picture of a hourglass")], UNGUARDED)
    assert torch.equal(passed.latents, plain.latents)


@pytest.mark.parametrize("expression", ["(?i)HourGlass", "(?x) hour \\ ? glass  # as two words too"])
def test_an_expression_with_flags_of_its_own(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, expression: str
) -> None:
    guards = guards_of({"kind": "prompt-filter", "expressions": [expression]})
    hidden, shown = run([trajectory_of("a hourglass", steps=1), trajectory_of("a heart", steps=1)], guards)
    assert (hidden.withheld, shown.withheld) == (True, False)


@pytest.mark.parametrize("replacement", [None, "heart"])
def test_an_expression_that_would_never_end_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, guards_of: GuardsOf, replacement: str | None
) -> None:
    monkeypatch.setattr(prompt_filter, "_MOST_SECONDS", 0.05)
    given = {"kind": "prompt-filter", "expressions": ["(a|aa)+c"]}
    (guard,) = guards_of(given | ({"replacement": replacement} if replacement else {})).guards
    assert guard.read("a heart") == "a heart"
    with pytest.raises(PreconditionError, match=r"takes more than .* write it with fewer repetitions"):
        guard.read("a" * 200)
