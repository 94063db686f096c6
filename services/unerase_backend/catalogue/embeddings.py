"""Learned embeddings: words that a model has beside its vocabulary, by the headers of their files.

A learned embedding of textual inversion (Gal et al., arXiv 2208.01618) gives a word one or several rows of the text
encoder's input embedding. The tokens are those of diffusers' `load_textual_inversion`: the word itself for the first
row, WORD_1, WORD_2 and so on for the others, with the ids that follow the vocabulary, a base's words first. In a prompt
the word stands for all its rows. The tokenizer finds it wherever its letters stand, capital or not.

Nothing here imports PyTorch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.entries import EmbeddingEntry
from unerase_backend.catalogue.tensors import FLOATS, UNREADABLE, StoredTensor, read_header
from unerase_backend.runtime.errors import UnsafeModelError

PART = "embedding"
"""What a problem names as its part."""
MAX_ROWS = 75
"""The most rows of a word: what CLIP reads of a prompt."""


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
    """A word with the tensor that holds its rows, (rows, width), or (width,) for one."""

    word: str
    tensor: StoredTensor

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.tensor.shape[-1]

    @property
    def learned(self) -> LearnedWord:
        """The word with the number of its rows."""
        return LearnedWord(self.word, self.tensor.shape[0] if len(self.tensor.shape) == 2 else 1)


def stored_word(entry: EmbeddingEntry) -> StoredWord:
    """Return the tensor of an entry's file.

    Raises:
        UnsafeModelError: the file cannot be read, or holds something else than one embedding.
    """
    name = shown(entry.file.name)
    try:
        tensors = list(read_header(entry.file).tensors.values())
    except UNREADABLE:
        raise _refused("WEIGHTS_UNREADABLE", f"{name} is cut off, damaged, or no safetensors file") from None
    if len(tensors) != 1:
        named = ", ".join(repr(shown(each.name)) for each in tensors[:3])
        what = f"{name} holds {len(tensors)} tensors ({named or 'none'}), and a learned embedding is one"
        raise _refused("WEIGHTS_UNKNOWN_TENSOR", what)
    [tensor] = tensors
    if tensor.dtype not in FLOATS:
        raise _refused("WEIGHTS_WRONG_TYPE", f"{name} is stored as {tensor.dtype}; read are {', '.join(FLOATS)}")
    if len(tensor.shape) not in (1, 2) or not tensor.parameters:
        what = f"{name} has the shape {tensor.shape}, and a learned embedding has (tokens, width)"
        raise _refused("WEIGHTS_WRONG_SHAPE", what)
    found = StoredWord(entry.token, tensor)
    if found.learned.rows > MAX_ROWS:
        what = f"{name} has {found.learned.rows} tokens for a word, and a prompt has room for {MAX_ROWS}"
        raise _refused("WEIGHTS_WRONG_SHAPE", what)
    return found


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
    for word in words:
        for token in word.tokens:
            known = _known(tokenizer, token)
            if known is None:
                continue
            if known in learned:
                raise _refused("EMBEDDING_TOKEN_TWICE", f"two embeddings have the token {shown(token)!r}")
            what = f"the tokenizer has the word {shown(token)!r} already; choose another token"
            raise _refused("EMBEDDING_WORD_EXISTS", what)
        tokenizer.add_tokens(list(word.tokens))
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
