"""Encodes what conditions a trajectory: a prompt, token ids, a prompt with a learned word, or an embedding.

A prompt becomes token ids as in its family's pipeline: start, words, end, padding, cut at the encoder's length, for
each text encoder (`text_reader`). A learned word replaces its placeholder: the words before and after it are tokenised
separately, and the rows of the input embedding at its position are replaced. Token ids are of the first text encoder's
vocabulary; a text encoder with another reads the text that they write.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt
from unerase_backend.diffusion.encoding import STATES, Encoding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.prompt import Prompt
from unerase_backend.diffusion.shapes import TEXT_ROWS
from unerase_backend.diffusion.tensors import from_message
from unerase_backend.diffusion.text_reader import Frame, TextReader
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

_WORD = "picture"


def tokenise(model: DiffusionModel, text: str) -> Prompt:
    """Return the ids of a prompt."""
    return Prompt(tuple(reader.framing.of(reader.tokens_of(text)) for reader in model.backbone.readers))


def tokenise_ids(model: DiffusionModel, ids: Sequence[int]) -> Prompt:
    """Return the prompt with these ids between start and end.

    Raises:
        InvalidRequestError: there are too many ids, or one is outside the vocabulary.
    """
    first = model.backbone.readers[0]
    if len(ids) > model.prompt_room:
        raise InvalidRequestError.of(FieldViolation("token_ids.ids", f"must be at most {model.prompt_room}"))
    for index, token in enumerate(ids):
        if not 0 <= token < first.vocabulary:
            raise InvalidRequestError.of(FieldViolation(f"token_ids.ids[{index}]", f"must be under {first.vocabulary}"))
    return _of_ids(model, ids, ids, 0)


def tokenise_searched(model: DiffusionModel, tokens: int, words: Sequence[int] = ()) -> Prompt:
    """Return the prompt of `tokens` tokens that a search puts in as a learned word, and of `words` after them.

    A text encoder with a vocabulary of its own reads the words alone.
    """
    return _of_ids(model, [0] * tokens + list(words), words, tokens)


def tokenise_learned(model: DiffusionModel, text: str, placeholder: str, tokens: int) -> Prompt:
    """Return the ids of a prompt in which `placeholder` stands for a learned word of `tokens` tokens.

    Raises:
        InvalidRequestError: the placeholder does not occur, occurs inside another word, or would be cut off.
    """
    if not placeholder or placeholder.split() != [placeholder]:
        raise InvalidRequestError.of(FieldViolation("learned.placeholder", "must be one word"))
    whole = re.compile(rf"(?<!\S){re.escape(placeholder)}(?![^\s.,;:!?])")
    pieces = whole.split(text)
    if len(pieces) == 1 or any(placeholder in piece for piece in pieces):
        problem = "must occur in the text, as a whole word wherever it occurs"
        raise InvalidRequestError.of(FieldViolation("learned.placeholder", problem))
    return Prompt(tuple(_learned_frame(reader, pieces, tokens) for reader in model.backbone.readers))


def encode_tokens(model: DiffusionModel, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Encoding:
    """Return the encodings of prompts, in one call of each text encoder.

    `learned` holds the embedding of each prompt's learned word, (tokens, width), or None; gradients reach it. See
    `backbone` for its width.
    """
    return model.backbone.encode(prompts, learned)


def prepare(model: DiffusionModel, conditioning: Conditioning) -> Callable[[], Encoding] | tuple[Prompt, Tensor | None]:
    """Check a conditioning against a model; return its prompt and learned embedding, or a function that returns its
    encoding.

    Raises:
        InvalidRequestError: it is empty, or does not fit the model; fields are relative to the conditioning.
    """
    match conditioning.WhichOneof("kind"):
        case "text":
            return tokenise(model, conditioning.text), None
        case "token_ids":
            return tokenise_ids(model, conditioning.token_ids.ids), None
        case "learned":
            return _prepare_learned(model, conditioning.learned)
        case "embedding":
            return _prepare_embedding(model, conditioning)
    raise InvalidRequestError.of(FieldViolation("", "must be given"))


@torch.inference_mode()
def encode(model: DiffusionModel, conditionings: Sequence[Conditioning]) -> list[Encoding]:
    """Return the encoding of each conditioning, in the model's dtype.

    Every call of a text encoder has `TEXT_ROWS` rows, so an encoding does not depend on the others in its call.

    Raises:
        InvalidRequestError: as in `prepare`.
    """
    prepared = [prepare(model, conditioning) for conditioning in conditionings]
    encoded = iter(encode_prompts(model, [item for item in prepared if isinstance(item, tuple)]))
    return [next(encoded) if isinstance(item, tuple) else item() for item in prepared]


@torch.inference_mode()
def encode_prompts(model: DiffusionModel, prompts: Sequence[tuple[Prompt, Tensor | None]]) -> list[Encoding]:
    """Return the encodings of prompts, each with its learned embedding or None, in calls of `TEXT_ROWS` rows."""
    encoded: list[Encoding] = []
    padding = (tokenise(model, ""), None)
    for start in range(0, len(prompts), TEXT_ROWS):
        chunk = list(prompts[start : start + TEXT_ROWS])
        rows = chunk + [padding] * (TEXT_ROWS - len(chunk))
        of_rows = encode_tokens(model, [prompt for prompt, _ in rows], [embedding for _, embedding in rows])
        encoded += [of_rows[row].clone() for row in range(len(chunk))]
    return encoded


def empty_encoding(model: DiffusionModel) -> Encoding:
    """Return the encoding of the empty prompt."""
    return encode_prompts(model, [(tokenise(model, ""), None)])[0]


def _prepare_learned(model: DiffusionModel, learned: LearnedPrompt) -> tuple[Prompt, Tensor]:
    width = sum(reader.width for reader in model.backbone.readers)
    embedding = from_message(learned.embedding, "learned.embedding", (None, width))
    return tokenise_learned(model, learned.text, learned.placeholder, len(embedding)), embedding


def _prepare_embedding(model: DiffusionModel, conditioning: Conditioning) -> Callable[[], Encoding]:
    like = empty_encoding(model)
    if others := sorted(set(like.tensors) - {STATES}):
        problem = f"cannot be given: {model.backbone.title} also reads {', '.join(others)} of a prompt"
        raise InvalidRequestError.of(FieldViolation("embedding", problem))
    states = from_message(conditioning.embedding, "embedding", tuple(like.states.shape))
    return lambda: Encoding({STATES: states.to(model.device, model.dtype)})


def _of_ids(model: DiffusionModel, ids: Sequence[int], written: Sequence[int], searched: int) -> Prompt:
    """Return the prompt of ids, the first of which are searched; other vocabularies read the text of `written`."""
    at = (0,) if searched else ()
    shared = model.backbone.searched
    frames: list[Frame] = []
    for reader in model.backbone.readers:
        if reader in shared:
            frames.append(reader.framing.of(ids, at))
        else:
            frames.append(reader.framing.of(reader.tokens_of(model.text_of(written))))
    return Prompt(tuple(frames))


def _learned_frame(reader: TextReader, pieces: Sequence[str], tokens: int) -> Frame:
    """Return one text encoder's frame of the pieces around a learned word, tokenised with a known word in its place."""
    known = reader.tokens_of(_WORD.join(pieces))
    ids: list[int] = []
    places: list[int] = []
    text, done = "", 0
    for piece in pieces[:-1]:
        text += piece
        before, text = reader.tokens_of(text.rstrip()), text + _WORD
        through = reader.tokens_of(text)
        # Tokens that cross the word's edges would give it other neighbours than intended.
        if not (through[: len(before)] == before and known[: len(through)] == through and len(through) > len(before)):
            problem = "the words beside the placeholder would be tokenised differently"
            raise InvalidRequestError.of(FieldViolation("learned.text", problem))
        ids += known[done : len(before)]
        places.append(len(ids))
        ids += [reader.framing.filler] * tokens
        done = len(through)
    if places[-1] + tokens > reader.framing.room:
        problem = f"the placeholder must stand within the {reader.framing.room} tokens that are read"
        raise InvalidRequestError.of(FieldViolation("learned.text", problem))
    return reader.framing.of([*ids, *known[done:]], places)
