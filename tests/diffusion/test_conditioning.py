"""Prompts against diffusers' own encoding, learned words against the vocabulary's."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt, TokenIds
from unerase_backend.diffusion import conditioning
from unerase_backend.diffusion.conditioning import (
    encode_tokens,
    tokenise,
    tokenise_learned,
)
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.tensors import from_message, to_message
from unerase_backend.runtime.errors import InvalidRequestError

WORDS = ["a", "picture", "of", "the", "hourglass", "red", "striped", "xyzzy", "Heart,", "it's"]


def encode(model: DiffusionModel, conditionings: Sequence[Conditioning]) -> list[torch.Tensor]:
    return [encoding.states for encoding in conditioning.encode(model, conditionings)]


def learned(text: str, embedding: torch.Tensor, placeholder: str = "<learned>") -> Conditioning:
    return Conditioning(learned=LearnedPrompt(text=text, placeholder=placeholder, embedding=to_message(embedding)))


def row_of(model: DiffusionModel, word: str) -> torch.Tensor:
    (token,) = model.tokenizer(word, add_special_tokens=False).input_ids
    weight: torch.Tensor = model.text_encoder.get_input_embeddings().weight
    return weight[token].detach().clone()


@given(words=st.lists(st.sampled_from(WORDS), max_size=40))
@settings(max_examples=40, deadline=None)
def test_ids_are_those_of_the_pipeline(model: DiffusionModel, words: list[str]) -> None:
    text = " ".join(words)
    expected = model.tokenizer(text, padding="max_length", max_length=model.prompt_length, truncation=True).input_ids
    prompt = tokenise(model, text)
    assert list(prompt.ids) == expected
    longer = len(model.tokenizer(text, verbose=False).input_ids) > model.prompt_length
    assert prompt.truncated == longer


def test_an_encoding_is_that_of_the_pipeline(model: DiffusionModel, pipeline: Any) -> None:
    texts = ["a picture of a hourglass", "", "a red heart " * 20]
    expected, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
    ours = torch.stack(encode(model, [Conditioning(text=text) for text in texts]))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_an_encoding_does_not_depend_on_its_neighbours(model: DiffusionModel) -> None:
    conditionings = [Conditioning(text=" ".join(WORDS[:count])) for count in range(11)]
    conditionings.append(learned("a <learned>", torch.full((1, 64), 3.0)))
    together = encode(model, conditionings)
    for each, encoding in zip(conditionings, together, strict=True):
        assert torch.equal(encode(model, [each])[0], encoding)
    for encoding, again in zip(reversed(together), encode(model, conditionings[::-1]), strict=True):
        assert torch.equal(encoding, again)


def test_token_ids_stand_for_the_words_they_are_of(model: DiffusionModel) -> None:
    ids = model.tokenizer("a red heart", add_special_tokens=False).input_ids
    by_ids, by_text = encode(model, [Conditioning(token_ids=TokenIds(ids=ids)), Conditioning(text="a red heart")])
    assert torch.equal(by_ids, by_text)


def test_an_embedding_is_taken_as_it_is(model: DiffusionModel) -> None:
    (encoding,) = encode(model, [Conditioning(text="a heart")])
    assert torch.equal(encode(model, [Conditioning(embedding=to_message(encoding))])[0], encoding)


@pytest.mark.parametrize("placeholder", ["<learned>", "golf_ball", "Sks", "blarghle"])
def test_a_learned_word_with_the_embedding_of_a_known_one_is_that_word(model: DiffusionModel, placeholder: str) -> None:
    for template in ("a picture of a {}", "{}", "a {}, and a red {}.", "{} heart"):
        known = Conditioning(text=template.replace("{}", "hourglass"))
        new = learned(template.replace("{}", placeholder), row_of(model, "hourglass")[None], placeholder)
        by_name, by_embedding = encode(model, [known, new])
        assert torch.equal(by_name, by_embedding)


def test_a_learned_word_of_two_tokens_is_two_words(model: DiffusionModel) -> None:
    both = torch.stack([row_of(model, "red"), row_of(model, "heart")])
    by_name, by_embedding = encode(model, [Conditioning(text="a red heart of"), learned("a <learned> of", both)])
    assert torch.equal(by_name, by_embedding)


def test_a_learned_word_leads_somewhere_else(model: DiffusionModel) -> None:
    one, other = encode(model, [learned("a <learned>", torch.full((1, 64), value)) for value in (0.0, 0.1)])
    assert not torch.equal(one, other)
    # Causal attention: what stands before the word is encoded as ever.
    assert torch.equal(one[:2], other[:2])


@pytest.mark.parametrize(
    ("text", "placeholder"),
    [
        ("a picture of a heart", "<learned>"),
        ("a <learned>s", "<learned>"),
        ("my_<learned> and <learned>", "<learned>"),
        ("a <learned>", ""),
        ("a <learned> b", "<learned> b"),
        ("a picture of " * 20 + "<learned>", "<learned>"),
    ],
)
def test_a_placeholder_that_would_not_be_read_is_refused(model: DiffusionModel, text: str, placeholder: str) -> None:
    with pytest.raises(InvalidRequestError, match="learned"):
        encode(model, [learned(text, torch.zeros(1, 64), placeholder)])


@pytest.mark.parametrize(
    ("conditioning", "field"),
    [
        (Conditioning(), ""),
        (Conditioning(token_ids=TokenIds(ids=[99_999])), "token_ids.ids[0]"),
        (Conditioning(token_ids=TokenIds(ids=[1] * 23)), "token_ids.ids"),
        (Conditioning(embedding=to_message(torch.zeros(2, 64))), "embedding"),
        (learned("a <learned>", torch.zeros(1, 3)), "learned.embedding"),
        (learned("a <learned>", torch.full((1, 64), float("nan"))), "learned.embedding"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(model: DiffusionModel, conditioning: Conditioning, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        encode(model, [conditioning])
    assert [violation.field for violation in caught.value.violations] == [field]


def test_gradients_reach_the_learned_word_and_nothing_stays_behind(model: DiffusionModel) -> None:
    embedding = row_of(model, "heart")[None].requires_grad_()
    prompt = tokenise_learned(model, "a <learned>", "<learned>", 1)
    encode_tokens(model, [prompt, tokenise(model, "")], [embedding, None]).states.square().sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0
    assert not model.text_encoder.get_input_embeddings()._forward_hooks


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_tensors_survive_the_wire(shape: list[int]) -> None:
    tensor = torch.randn(shape)
    if 0 in shape:
        with pytest.raises(InvalidRequestError):
            from_message(to_message(tensor), "latents", (None,) * len(shape))
    else:
        assert torch.equal(from_message(to_message(tensor), "latents", tuple(shape)), tensor)
