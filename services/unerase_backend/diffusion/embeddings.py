"""Adds learned embeddings to a text encoder and its tokenizer, as diffusers' `load_textual_inversion` does.

The input embedding of each text encoder gets a row for each row of a learned word (`catalogue/embeddings.py` says which
ids they have). The rows are read as float32 and rounded once, to the number type of the table.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.embeddings import StoredWord, add_words, collapsed
from unerase_backend.catalogue.tensors import UNREADABLE
from unerase_backend.runtime.errors import UnsafeModelError


def read(word: StoredWord, part: str) -> Tensor:
    """Return the rows of a word in a text encoder, (rows, width), float32 on the CPU.

    Raises:
        UnsafeModelError: the file was changed since it was checked, or a number is not finite.
    """
    name, tensor = shown(word.file.name), word.tensors[part]
    try:
        with safe_open(tensor.file, framework="pt") as file:
            rows: Tensor = file.get_tensor(tensor.name).float().reshape(-1, tensor.shape[-1])
    except UNREADABLE as error:
        message = f"{name} cannot be read any more; it was changed while it was loaded"
        raise UnsafeModelError(message, reason="WEIGHTS_UNREADABLE") from error
    if not bool(torch.isfinite(rows).all()):
        message = f"the embedding of {shown(word.word)!r}: {name} holds NaN or infinity"
        raise UnsafeModelError(message, reason="WEIGHTS_NOT_FINITE")
    return rows


@torch.no_grad()
def add(words: Sequence[StoredWord], part: str, tokenizer: Any, text_encoder: Any) -> dict[int, tuple[int, ...]]:
    """Add words to one of a model's text encoders, the `part`, and to its tokenizer; return the ids of each word's rows
    by the first of them.

    Raises:
        UnsafeModelError: as in `read` and `add_words`.
    """
    ids = add_words(tokenizer.backend_tokenizer, [word.learned for word in words])
    if not ids:
        return ids
    layer = text_encoder.get_input_embeddings()
    table = layer.weight
    # A tokenizer may know fewer tokens than the encoder embeds; then a word takes the place of a row without a token.
    size = max(len(table), 1 + max(row for own in ids.values() for row in own))
    grown = table.new_zeros((size, table.shape[1]))
    grown[: len(table)] = table
    for word, own in zip(words, ids.values(), strict=True):
        grown[list(own)] = read(word, part).to(grown)
    weight = nn.Parameter(grown, requires_grad=table.requires_grad)
    for each in layers_of(text_encoder, table):
        each.weight, each.num_embeddings = weight, size
    text_encoder.config.vocab_size = size
    return ids


def layers_of(text_encoder: Any, table: Tensor) -> list[nn.Embedding]:
    """Return the layers of a text encoder that embed tokens by one table: some have it twice, and use the second."""
    return [each for each in text_encoder.modules() if isinstance(each, nn.Embedding) and each.weight is table]


def decode(tokenizer: Any, ids: Sequence[int], words: Mapping[int, Sequence[int]]) -> str:
    """Return the text that token ids write, with each learned word once."""
    learned = {row for rows in words.values() for row in rows}
    written: list[str] = []
    # The tokenizer would write learned words byte by byte, and without spaces.
    for own, group in groupby(collapsed(ids, words), key=learned.__contains__):
        held = list(group)
        written += tokenizer.convert_ids_to_tokens(held) if own else [tokenizer.decode(held)]
    return " ".join(written)
