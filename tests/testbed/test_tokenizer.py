"""The tokenizer: corpus words are single tokens, and every prompt can be encoded."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from unerase_backend.testbed import language
from unerase_backend.testbed import tokenizer as bpe

BUILT = bpe.build()


@pytest.mark.parametrize("word", language.corpus_words())
def test_every_corpus_word_is_one_token(word: str) -> None:
    assert len(BUILT(word, add_special_tokens=False).input_ids) == 1


@given(st.text(alphabet=string.printable, max_size=200))
def test_every_ascii_prompt_tokenises(prompt: str) -> None:
    ids = BUILT(prompt, padding="max_length", truncation=True).input_ids
    assert len(ids) == bpe.LENGTH
    assert ids[0] == BUILT.bos_token_id
    assert BUILT.eos_token_id in ids
    inside = BUILT(prompt, add_special_tokens=False, truncation=False).input_ids
    assert "".join(BUILT.convert_ids_to_tokens(inside)).replace(bpe.WORD_END, "") == "".join(prompt.lower().split())


@given(st.text(max_size=60))
def test_every_prompt_tokenises(prompt: str) -> None:
    assert len(BUILT(prompt, padding="max_length", truncation=True).input_ids) == bpe.LENGTH


@given(st.lists(st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=8), min_size=1, max_size=20))
def test_merging_runs_to_completion(words: list[str]) -> None:
    merges = bpe.learn_merges(words)
    made = {left + right for left, right in merges} | {symbol + bpe.WORD_END for symbol in bpe.byte_symbols()}
    assert {word + bpe.WORD_END for word in words} <= made
    assert len(set(merges)) == len(merges)


def test_bytes_have_distinct_stand_ins() -> None:
    assert len(set(bpe.byte_symbols())) == 256


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    bpe.save(tmp_path)
    loaded = bpe.load(tmp_path)
    prompt = "A picture of a red hourglass, oddly SPELLED!"
    assert isinstance(loaded, CLIPTokenizer)
    assert loaded.model_max_length == bpe.LENGTH
    assert loaded(prompt).input_ids == BUILT(prompt).input_ids
