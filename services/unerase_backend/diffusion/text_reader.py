"""A text encoder with its tokenizer: how words become token ids with start, end and padding, and what it says of them.

A learned word stands at some positions of a prompt. There the rows of the encoder's input embedding are replaced, and
the rest of the encoder does not change. Text encoders of transformers 5.23 do not all accept `inputs_embeds`, so this
uses a hook on the input embedding.

A large text encoder may take more of a device's memory than the denoiser, and is needed for moments. Its weights wait
in main memory, and visit the device for each call.
"""

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue.embeddings import expanded
from unerase_backend.diffusion import embeddings
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


@dataclass(frozen=True)
class Frame:
    """The token ids of a prompt as one text encoder reads them, with start, end and padding."""

    ids: tuple[int, ...]
    used: int
    """Tokens before the padding, start and end included."""
    words: int
    """Tokens of words among them."""
    learned_at: tuple[int, ...] = ()
    """The first position of each occurrence of the learned word."""
    truncated: bool = False


@dataclass(frozen=True)
class Framing:
    """What stands around the words of a prompt, and how long it is."""

    length: int
    """Tokens of a framed prompt, with start, end and padding."""
    start: tuple[int, ...]
    """The ids before the words."""
    end: tuple[int, ...]
    """The ids after them."""
    pad: int
    bare: tuple[int, ...] | None = None
    """The ids of a prompt without words, where they are not start and end."""

    @property
    def room(self) -> int:
        """How many tokens of words there is room for."""
        return self.length - len(self.start) - len(self.end)

    @property
    def filler(self) -> int:
        """The id where a learned word stands. It must not end a prompt: there CLIP takes the pooled encoding."""
        return 0 if 0 not in self.end else 1

    def of(self, words: Sequence[int], learned_at: Sequence[int] = ()) -> Frame:
        """Return the frame of words, cut where there is no more room; `learned_at` are places among the words."""
        read = words[: self.room]
        ids = (*self.start, *read, *self.end)
        if not words and self.bare is not None:
            ids = self.bare
        padding = (self.pad,) * (self.length - len(ids))
        places = tuple(place + len(self.start) for place in learned_at)
        return Frame((*ids, *padding), len(ids), len(read), places, truncated=len(words) > self.room)


def clip_framing(tokenizer: Any) -> Framing:
    """Return the framing of a CLIP tokenizer: start, words, end, padding."""
    return Framing(
        tokenizer.model_max_length, (tokenizer.bos_token_id,), (tokenizer.eos_token_id,), tokenizer.pad_token_id
    )


def t5_framing(tokenizer: Any, length: int) -> Framing:
    """Return the framing of a T5 tokenizer: words, end, padding."""
    return Framing(length, (), (tokenizer.eos_token_id,), tokenizer.pad_token_id)


def lowered(text: str) -> str:
    """Return a text in lower case, without spaces at its ends, as the pipelines of PixArt and Sana read it."""
    return text.lower().strip()


@dataclass(frozen=True)
class Lead:
    """What an encoder reads before every prompt that has words, such as an instruction."""

    text: str
    ids: tuple[int, ...]
    """The first of its token ids, which are the same whatever follows."""

    @staticmethod
    def of(tokenizer: Any, text: str) -> "Lead":
        """Return the lead of a text: its end, such as a space, may be one token with the first letters of a prompt."""
        following = ("", *string.ascii_lowercase, *string.digits, *string.punctuation)
        tokenised = tokenizer([text + each for each in following], add_special_tokens=False, verbose=False).input_ids
        same = takewhile(lambda column: len(set(column)) == 1, zip(*tokenised, strict=False))
        return Lead(text, tuple(column[0] for column in same))


@dataclass(frozen=True, eq=False)
class TextReader:
    """One text encoder of a model."""

    part: str
    """Its folder in the pipeline, such as `text_encoder`."""
    encoder: Any
    tokenizer: Any
    framing: Framing
    normalise: Callable[[str], str] = field(default=lambda text: text)
    """What becomes of a text before it is tokenised."""
    words: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The token ids of each learned word's rows, by the first of them."""
    visits: torch.device | None = None
    """The device on which an encoder computes whose weights wait in main memory; None if they are where it computes."""
    lead: Lead | None = None
    """What is read before every prompt that has words; `framing` has its ids."""

    @property
    def embedding(self) -> Any:
        """The layer that embeds token ids."""
        return self.encoder.get_input_embeddings()

    @property
    def width(self) -> int:
        """Numbers of a token's embedding."""
        width: int = self.embedding.weight.shape[1]
        return width

    @property
    def vocabulary(self) -> int:
        """How many tokens are embedded."""
        return len(self.embedding.weight)

    def same_words(self, other: "TextReader") -> bool:
        """Whether both have the same ids for the same words, so that a search for ids serves both."""
        return self.tokenizer is other.tokenizer or (
            type(self.tokenizer) is type(other.tokenizer)
            and self.vocabulary == other.vocabulary
            and self.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        )

    def tokens_of(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end; a learned word stands for all its rows.

        Raises:
            InvalidRequestError: its beginning is one token with the end of what is read before it.
        """
        given = self.normalise(text)
        if self.normalise is lowered:
            # A learned word keeps its capitals, by which the tokenizer finds it.
            for name in self.tokenizer.convert_ids_to_tokens(list(self.words)):
                given = given.replace(name.lower(), name)
        lead = self.lead if given and self.lead else Lead("", ())
        ids = self.tokenizer(lead.text + given, add_special_tokens=False, verbose=False).input_ids
        before = len(lead.ids)
        if tuple(ids[:before]) != lead.ids:
            problem = f"{given[:1]!r} cannot begin a prompt of this model: it changes how the words before it are read"
            raise InvalidRequestError.of(FieldViolation("text", problem))
        return expanded(ids[before:], self.words)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text that token ids write."""
        return embeddings.decode(self.tokenizer, ids, self.words)

    def with_words(self, words: Mapping[int, tuple[int, ...]]) -> "TextReader":
        """Return the reader with learned words, which its tokenizer and encoder have already."""
        return replace(self, words=words)

    def read(self, frames: Sequence[Frame], learned: Sequence[Tensor | None], **options: Any) -> Any:
        """Return what the encoder says of frames, in one call.

        `learned` holds the embedding of each frame's learned word, (tokens, width), or None; gradients reach it.
        `options` go to the encoder.
        """

        def put_in(module: object, inputs: object, embedded: Tensor) -> Tensor:
            embedded = embedded.clone()
            for row, (frame, embedding) in enumerate(zip(frames, learned, strict=True)):
                if embedding is not None:
                    rows = embedding.to(embedded)
                    # The layer of Gemma multiplies the rows of its table.
                    rows = rows if scale is None else rows * scale.to(rows)
                    for place in frame.learned_at:
                        embedded[row, place : place + len(rows)] = rows
            return embedded

        scale = getattr(self.embedding, "embed_scale", None)
        layers = embeddings.layers_of(self.encoder, self.embedding.weight)
        hooks = [layer.register_forward_hook(put_in) for layer in layers]
        try:
            with self._there():
                ids = torch.tensor([frame.ids for frame in frames], device=self.embedding.weight.device)
                return self.encoder(ids, **options)
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Have the weights on the device of the computation; they stay there if gradients will ask for them."""
        tensors = [*self.encoder.parameters(), *self.encoder.buffers()] if self.visits is not None else []
        waiting = [tensor.data for tensor in tensors]
        arrived = False
        try:
            # What is copied in inference mode could not be the data of a parameter.
            with torch.inference_mode(False):
                for tensor in tensors:
                    tensor.data = tensor.data.to(self.visits)
            arrived = True
            yield
        finally:
            if not (arrived and torch.is_grad_enabled()):
                # Weights that models share are still the same memory.
                for tensor, data in zip(tensors, waiting, strict=True):
                    tensor.data = data

    def mask(self, frames: Sequence[Frame]) -> Tensor:
        """Return 1 where a frame has a token and 0 where it has padding, (frames, tokens), int64."""
        device = self.visits or self.embedding.weight.device
        places = torch.arange(self.framing.length, device=device)
        return (places < torch.tensor([[frame.used] for frame in frames], device=device)).long()
