"""Learned embeddings: words that a model has beside its vocabulary, by the headers of their files.

A learned embedding of textual inversion (Gal et al., arXiv 2208.01618) gives a word one or several rows of the text
encoder's input embedding; a model with several text encoders needs the rows of each. The tokens are those of diffusers'
`load_textual_inversion`: the word itself for the first row, WORD_1, WORD_2 and so on for the others, with the ids that
follow the vocabulary, a base's words first. In a prompt the word stands for all its rows. The tokenizer finds it
wherever its letters stand, capital or not.

Nothing here imports PyTorch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.entries import EmbeddingEntry
from unerase_backend.catalogue.tensors import FLOATS, UNREADABLE, StoredTensor, read_header
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

PART = "embedding"
"""What a problem names as its part."""
MAX_ROWS = 75
"""The most rows of a word: what CLIP reads of a prompt."""

# What trainers call the rows of the first and of the second CLIP, and of other text encoders.
_OF_CLIPS = ("clip_l", "clip_g")
_OF_OTHERS = {"T5EncoderModel": ("t5xxl", "t5"), "Gemma2Model": ("gemma2_2b",)}
_KEYS = frozenset(_OF_CLIPS).union(*_OF_OTHERS.values())


@dataclass(frozen=True)
class LearnedWord:
    """A word with the number of its rows."""

    word: str
    rows: int

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token of each row."""
        return (self.word, *(f"{self.word}_{row}" for row in range(1, self.rows)))


@dataclass(frozen=True)
class StoredWord:
    """A word with the tensors that hold its rows, each (rows, width), or (width,) for one row."""

    word: str
    tensors: Mapping[str, StoredTensor]
    """By their names in the file; of a word that was `placed`, by the parts of the text encoders."""

    @property
    def learned(self) -> LearnedWord:
        """The word with the number of its rows."""
        return LearnedWord(self.word, max(map(_rows, self.tensors.values())))

    @property
    def file(self) -> Path:
        """Where it is stored."""
        return next(iter(self.tensors.values())).file


def stored_word(entry: EmbeddingEntry) -> StoredWord:
    """Return the tensors of an entry's file, by their names: one, or one for each of several text encoders.

    Raises:
        UnsafeModelError: the file cannot be read, or holds something else than one word's embeddings.
    """
    name = shown(entry.file.name)
    try:
        tensors = dict(read_header(entry.file).tensors)
    except UNREADABLE:
        raise _refused("WEIGHTS_UNREADABLE", f"{name} is cut off, damaged, or no safetensors file") from None
    if not tensors or (len(tensors) > 1 and not tensors.keys() <= _KEYS):
        what = f"{name} holds {_listed(tensors)}, and a learned embedding is one, or one for each text encoder"
        raise _refused("WEIGHTS_UNKNOWN_TENSOR", f"{what}: {', '.join(sorted(_KEYS))}")
    for tensor in tensors.values():
        if tensor.dtype not in FLOATS:
            raise _refused("WEIGHTS_WRONG_TYPE", f"{name} is stored as {tensor.dtype}; read are {', '.join(FLOATS)}")
        if len(tensor.shape) not in (1, 2) or not tensor.parameters:
            what = f"{name} has the shape {tensor.shape}, and a learned embedding has (tokens, width)"
            raise _refused("WEIGHTS_WRONG_SHAPE", what)
    if len(counts := {_rows(tensor) for tensor in tensors.values()}) > 1:
        what = f"{name} has {min(counts)} tokens for a word in one text encoder and {max(counts)} in another"
        raise _refused("WEIGHTS_WRONG_SHAPE", what)
    if (rows := max(counts)) > MAX_ROWS:
        what = f"{name} has {rows} tokens for a word, and a prompt has room for {MAX_ROWS}"
        raise _refused("WEIGHTS_WRONG_SHAPE", what)
    return StoredWord(entry.token, tensors)


def placed(word: StoredWord, encoders: Mapping[str, str]) -> StoredWord:
    """Return a word with its tensors by the parts of a model's text encoders, which are given with their classes.

    Raises:
        UnsafeModelError: the file lacks the rows of a text encoder, or has rows of one that the model lacks.
    """
    if len(word.tensors) == len(encoders) == 1:
        return StoredWord(word.word, dict(zip(encoders, word.tensors.values(), strict=True)))
    name, keys = shown(word.file.name), _keys_of(encoders)
    found = {part: word.tensors[key] for part, own in keys.items() for key in own if key in word.tensors}
    if missing := [part for part in encoders if part not in found]:
        what = f"{name} holds {_listed(word.tensors)}, and lacks the rows of the {missing[0]} ({keys[missing[0]][0]})"
        raise _refused("WEIGHTS_INCOMPLETE", f"{what}: each text encoder of the model reads the word")
    if len(found) < len(word.tensors):
        what = f"{name} holds {_listed(word.tensors)}, and the model reads {len(found)}: it has {', '.join(encoders)}"
        raise _refused("WEIGHTS_UNKNOWN_TENSOR", what)
    return StoredWord(word.word, found)


def _rows(tensor: StoredTensor) -> int:
    return tensor.shape[0] if len(tensor.shape) == 2 else 1


def _listed(tensors: Mapping[str, StoredTensor]) -> str:
    named = ", ".join(repr(shown(name)) for name in [*tensors][:3])
    return f"{counted(len(tensors), 'tensor')} ({named or 'none'})"


def _keys_of(encoders: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the names by which files have the rows of each text encoder."""
    clips = iter(_OF_CLIPS)
    return {
        part: (next(clips),) if kind.startswith("CLIP") else _OF_OTHERS.get(kind, (part,))
        for part, kind in encoders.items()
    }


def learned_words(entries: Iterable[EmbeddingEntry]) -> tuple[LearnedWord, ...]:
    """Return the words of embeddings in their order; errors as in `stored_word`."""
    return tuple(stored_word(entry).learned for entry in entries)


def add_words(tokenizer: Any, words: Iterable[LearnedWord]) -> dict[int, tuple[int, ...]]:
    """Add words to a tokenizer of the library `tokenizers`; return the ids of each word's rows by the first of them.

    Raises:
        UnsafeModelError: the tokenizer knows one of the words already, or cannot tell it from others.
    """
    ids: dict[int, tuple[int, ...]] = {}
    learned: set[str] = set()
    # Where a space is part of the word that follows it, as in Gemma, a learned word takes the one before it.
    spaced = _ids(tokenizer, "a ") != _ids(tokenizer, "a")
    for word in words:
        for token in word.tokens:
            known = _known(tokenizer, token)
            if known is None:
                continue
            if known in learned:
                raise _refused("EMBEDDING_TOKEN_TWICE", f"two embeddings have the token {shown(token)!r}")
            what = f"the tokenizer has the word {shown(token)!r} already; choose another token"
            raise _refused("EMBEDDING_WORD_EXISTS", what)
        tokenizer.add_tokens(
            [AddedToken(token, lstrip=True, normalized=False) if spaced else token for token in word.tokens]
        )
        own = tuple(tokenizer.token_to_id(token) for token in word.tokens)
        for token, known_id in zip(word.tokens, own, strict=True):
            if _ids(tokenizer, token) != [known_id]:
                what = f"the tokenizer cannot tell {shown(token)!r} from other words; choose another token"
                raise _refused("EMBEDDING_WORD_EXISTS", what)
        learned |= set(word.tokens)
        ids[own[0]] = own
    return ids


def expanded(ids: Iterable[int], words: Mapping[int, Sequence[int]]) -> list[int]:
    """Return the ids of a text with all rows of each learned word."""
    return [row for token in ids for row in words.get(token, (token,))]


def collapsed(ids: Sequence[int], words: Mapping[int, Sequence[int]]) -> list[int]:
    """Return ids with the first row alone where all rows of a learned word follow one another."""
    found: list[int] = []
    place = 0
    while place < len(ids):
        rows = tuple(words.get(ids[place], ()))
        whole = bool(rows) and tuple(ids[place : place + len(rows)]) == rows
        found.append(ids[place])
        place += len(rows) if whole else 1
    return found


def named(entry: EmbeddingEntry, error: UnsafeModelError) -> str:
    """Return an error's message with the word that it is about."""
    word = shown(entry.token)
    return error.message if repr(word) in error.message else f"the embedding of {word!r}: {error.message}"


def _known(tokenizer: Any, token: str) -> str | None:
    """Return the word of the vocabulary that a token is; None if it is none."""
    ids = _ids(tokenizer, token)
    if len(ids) != 1:
        return None
    written = tokenizer.normalizer.normalize_str(token) if tokenizer.normalizer is not None else token
    known: str = tokenizer.id_to_token(ids[0])
    # What a tokenizer without all bytes does not know becomes the token of unknown words, which writes nothing.
    text = tokenizer.decode([ids[0]], skip_special_tokens=True).removesuffix("</w>").strip()
    return known if written.casefold() in (text.casefold(), known.casefold()) else None


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text without the padding that a tokenizer may be set to."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return [token for token, real in zip(encoding.ids, encoding.attention_mask, strict=True) if real]


def _refused(reason: str, message: str) -> UnsafeModelError:
    return UnsafeModelError(message, reason=reason)
