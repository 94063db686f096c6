"""Encodes what conditions a trajectory: a prompt, token ids, a prompt with a learned word, or an embedding.

A prompt becomes token ids as in StableDiffusionPipeline: start, words, end, padding, cut at the encoder's length. A
learned word replaces its placeholder: the words before and after it are tokenised separately, the rows of the input
embedding at its position are replaced, and the rest of the text encoder does not change. CLIPTextModel of transformers
5.23 does not accept `inputs_embeds`, so this uses a hook on its input embedding.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, LearnedPrompt
from unerase_backend.diffusion.loading import DiffusionModel
from unerase_backend.diffusion.shapes import TEXT_ROWS
from unerase_backend.diffusion.tensors import from_message
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

_WORD = "picture"


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt: ids with start, end and padding, and the positions of a learned word."""

    ids: tuple[int, ...]
    learned_at: tuple[int, ...] = ()
    """The first position of each occurrence of the learned word."""
    truncated: bool = False


def tokenise(model: DiffusionModel, text: str) -> Prompt:
    """Return the ids of a prompt."""
    return _framed(model, model.tokens_of(text))


def tokenise_ids(model: DiffusionModel, ids: Sequence[int]) -> Prompt:
    """Return the prompt with these ids between start and end.

    Raises:
        InvalidRequestError: there are too many ids, or one is outside the vocabulary.
    """
    limit = model.prompt_length - 2
    vocabulary = model.text_encoder.config.vocab_size
    if len(ids) > limit:
        raise InvalidRequestError.of(FieldViolation("token_ids.ids", f"must be at most {limit}"))
    for index, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise InvalidRequestError.of(FieldViolation(f"token_ids.ids[{index}]", f"must be under {vocabulary}"))
    return _framed(model, ids)


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
    parts = [model.tokens_of(piece) for piece in pieces]
    # If the words beside the placeholder were tokenised differently with a word in its place, the learned word would
    # stand beside other tokens than intended.
    if model.tokens_of(whole.sub(_WORD, text)) != _joined(parts, model.tokens_of(_WORD))[0]:
        problem = "the words beside the placeholder would be tokenised differently"
        raise InvalidRequestError.of(FieldViolation("learned.text", problem))
    ids, places = _joined(parts, [model.tokenizer.pad_token_id] * tokens)
    if places[-1] + tokens > model.prompt_length - 2:
        problem = f"the placeholder must stand within the {model.prompt_length - 2} tokens that are read"
        raise InvalidRequestError.of(FieldViolation("learned.text", problem))
    framed = _framed(model, ids)
    return Prompt(framed.ids, tuple(place + 1 for place in places), framed.truncated)


def encode_tokens(model: DiffusionModel, prompts: Sequence[Prompt], learned: Sequence[Tensor | None]) -> Tensor:
    """Return the encodings of prompts, (prompts, tokens, width), in one call of the text encoder.

    `learned` holds the embedding of each prompt's learned word, (tokens, width), or None; gradients reach it.
    """
    ids = torch.tensor([prompt.ids for prompt in prompts], device=model.device)

    def put_in(module: object, inputs: object, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for row, (prompt, embedding) in enumerate(zip(prompts, learned, strict=True)):
            if embedding is not None:
                for place in prompt.learned_at:
                    embedded[row, place : place + len(embedding)] = embedding.to(embedded)
        return embedded

    hook = model.text_encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        encoded: Tensor = model.text_encoder(ids)[0]
    finally:
        hook.remove()
    return encoded


def prepare(model: DiffusionModel, conditioning: Conditioning) -> Callable[[], Tensor] | tuple[Prompt, Tensor | None]:
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
            shape = (model.prompt_length, model.prompt_width)
            encoded = from_message(conditioning.embedding, "embedding", shape)
            return lambda: encoded.to(model.device, model.dtype)
    raise InvalidRequestError.of(FieldViolation("", "must be given"))


@torch.inference_mode()
def encode(model: DiffusionModel, conditionings: Sequence[Conditioning]) -> list[Tensor]:
    """Return the encoding of each conditioning, (tokens, width), in the model's dtype.

    Every call of the text encoder has `TEXT_ROWS` rows, so an encoding does not depend on the others in its call.

    Raises:
        InvalidRequestError: as in `prepare`.
    """
    prepared = [prepare(model, conditioning) for conditioning in conditionings]
    encoded = iter(encode_prompts(model, [item for item in prepared if isinstance(item, tuple)]))
    return [next(encoded) if isinstance(item, tuple) else item() for item in prepared]


@torch.inference_mode()
def encode_prompts(model: DiffusionModel, prompts: Sequence[tuple[Prompt, Tensor | None]]) -> list[Tensor]:
    """Return the encodings of prompts, each with its learned embedding or None, in calls of `TEXT_ROWS` rows."""
    encoded: list[Tensor] = []
    padding = (tokenise(model, ""), None)
    for start in range(0, len(prompts), TEXT_ROWS):
        chunk = list(prompts[start : start + TEXT_ROWS])
        rows = chunk + [padding] * (TEXT_ROWS - len(chunk))
        states = encode_tokens(model, [prompt for prompt, _ in rows], [embedding for _, embedding in rows])
        encoded += [states[row].clone() for row in range(len(chunk))]
    return encoded


def _prepare_learned(model: DiffusionModel, learned: LearnedPrompt) -> tuple[Prompt, Tensor]:
    width = model.text_encoder.get_input_embeddings().embedding_dim
    embedding = from_message(learned.embedding, "learned.embedding", (None, width))
    return tokenise_learned(model, learned.text, learned.placeholder, len(embedding)), embedding


def _framed(model: DiffusionModel, words: Sequence[int]) -> Prompt:
    tokenizer = model.tokenizer
    room = model.prompt_length - 2
    ids = [tokenizer.bos_token_id, *words[:room], tokenizer.eos_token_id]
    padding = [tokenizer.pad_token_id] * (model.prompt_length - len(ids))
    return Prompt((*ids, *padding), truncated=len(words) > room)


def _joined(parts: Sequence[list[int]], between: list[int]) -> tuple[list[int], list[int]]:
    ids, places = list(parts[0]), []
    for part in parts[1:]:
        places.append(len(ids))
        ids += [*between, *part]
    return ids, places
