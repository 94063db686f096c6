"""How much of a text a text encoder reads: it cuts a prompt after its tokens, without a word.

The tokenizer of a model or judge is read alone, without its weights and without torch, so that a prompt that would be
cut is known before anything is computed.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from unerase_backend.catalogue import configs, families
from unerase_backend.catalogue.backbone_kinds import Role, encoder_of, of_role
from unerase_backend.catalogue.embeddings import LearnedWord, add_words
from unerase_backend.catalogue.model_files import present
from unerase_backend.runtime.errors import UnsafeModelError

_IMPORTING = threading.Lock()
# The start and the end of a prompt, which CLIP reads beside its words; other encoders have an end alone.
_FRAME, _END = 2, 1
CLIP = "CLIPTokenizer"
CLIP_TOKENS = 77
"""What CLIP reads of a prompt with start and end, unless its configuration says otherwise."""


@dataclass(frozen=True)
class Reading:
    """What an encoder reads of one text."""

    tokens: int
    """Tokens of the whole text, without start and end."""
    limit: int
    """The most that are read."""
    end: int
    """The place after the last character that is read, or the text's length if all of it is."""

    @property
    def cut(self) -> bool:
        """Whether part of the text is not read."""
        return self.tokens > self.limit


@dataclass(frozen=True, eq=False)
class TextReach:
    """A tokenizer with the number of tokens that its text encoder reads, start and end excluded."""

    tokenizer: Any
    limit: int
    words: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The ids of each learned word's rows, by the first of them."""
    lower_case: bool = False
    """Whether a text is read in lower case, without spaces at its ends."""

    def read(self, text: str) -> Reading:
        """Return what is read of a text; safe to call from several threads."""
        given, places = self._given(text)
        encoding = self.tokenizer.encode(given, add_special_tokens=False)
        # All rows of a learned word stand where the word does.
        begins = [
            places[begin]
            for token, (begin, _) in zip(encoding.ids, encoding.offsets, strict=True)
            for _ in self.words.get(token, (token,))
        ]
        tokens = len(begins)
        # Characters that follow one another may share a token's place in the text, or stand in none.
        unread = min(begins[self.limit :], default=len(text))
        return Reading(tokens, self.limit, unread if tokens > self.limit else len(text))

    def _given(self, text: str) -> tuple[str, list[int]]:
        """Return what the tokenizer is given of a text, and the place in the text of each character and of the end."""
        if not self.lower_case:
            return text, list(range(len(text) + 1))
        # A letter may have several in lower case.
        places = [place for place, letter in enumerate(text) for _ in letter.lower()]
        given = text.lower()
        before = len(given) - len(given.lstrip())
        given = given.strip()
        for token in self.words:
            word = self.tokenizer.id_to_token(token)
            given = given.replace(word.lower(), word)
        return given, [*places[before : before + len(given)], len(text)]


@lru_cache(maxsize=64)
def model_reaches(
    folder: Path, words: tuple[LearnedWord, ...] = (), max_sequence_length: int | None = None
) -> tuple[TextReach, ...]:
    """Return the reach of each text encoder of a pipeline folder, in their order, with learned words; a folder is read
    once.

    `max_sequence_length` is that of the catalogue, if it has one, for text encoders without a length of their own.

    Raises:
        UnsafeModelError: a tokenizer, or an encoder's configuration, cannot be read, or a word cannot be added.
    """
    family = families.family_of_folder(folder)
    index = configs.parse(folder / "model_index.json")
    # A folder may hold a text encoder that its index leaves out, which then reads nothing.
    there = present(family, index)
    parts = [part for part in of_role(there, Role.TOKENIZER) if encoder_of(part) in there and (folder / part).is_dir()]
    if not parts:
        raise UnsafeModelError("tokenizer is missing", reason="MODEL_INCOMPLETE")
    of_family = family.sequence_length_of(index if isinstance(index, Mapping) else {})
    length = of_family if max_sequence_length is None else max_sequence_length
    found = []
    for part in parts:
        kind = family.parts[part].kind
        if kind == CLIP:
            found.append(_reach(folder / part, _positions(folder / encoder_of(part) / "config.json"), words))
        else:
            tokenizer = _loaded(folder / part, kind).backend_tokenizer
            found.append(TextReach(tokenizer, max(length - _END, 0), add_words(tokenizer, words), family.lower_case))
    return tuple(found)


@lru_cache(maxsize=64)
def judge_reach(folder: Path) -> TextReach:
    """Return the reach of a CLIP judge's text encoder; a folder is read once.

    Raises:
        UnsafeModelError: as in `model_reaches`.
    """
    return _reach(folder, _positions(folder / "config.json"))


def furthest(reaches: Iterable[TextReach], text: str) -> Reading:
    """Return the reading of the encoder that reads most of a text: what it reads, the model is told."""
    return max((reach.read(text) for reach in reaches), key=lambda reading: (reading.end, reading.limit))


def _reach(folder: Path, positions: int, words: Iterable[LearnedWord] = ()) -> TextReach:
    # Without its vocabulary the library makes one of two tokens, without a word.
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        message = f"{folder.name} has neither tokenizer.json nor vocab.json"
        raise UnsafeModelError(message, reason="TOKENIZER_UNREADABLE")
    loaded = _loaded(folder, CLIP)
    tokenizer = loaded.backend_tokenizer
    return TextReach(tokenizer, min(positions, loaded.model_max_length) - _FRAME, add_words(tokenizer, words))


def _loaded(folder: Path, kind: str) -> Any:
    try:
        loaded = _tokenizer_class(kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnsafeModelError("the tokenizer does not load", reason="TOKENIZER_UNREADABLE") from error
    # The folder's own settings for padding and truncation would hide what is beyond the encoder's reach.
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    return loaded


def _tokenizer_class(kind: str) -> Any:
    # The import takes most of a second, which no start of a process should wait for. The library fails if two threads
    # import it for the first time at once.
    with _IMPORTING:
        import transformers

        return getattr(transformers, kind)


def _positions(config: Path) -> int:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        found = content.get("text_config", content).get("max_position_embeddings", CLIP_TOKENS)
    except (OSError, ValueError, AttributeError, RecursionError):
        message = f"{config.parent.name}/{config.name} is missing or is not JSON"
        raise UnsafeModelError(message, reason="MODEL_INCOMPLETE") from None
    if not isinstance(found, int) or found <= _FRAME:
        message = f"max_position_embeddings of {config.parent.name}/{config.name} must be a whole number over {_FRAME}"
        raise UnsafeModelError(message, reason="MODEL_UNSUPPORTED")
    return found
