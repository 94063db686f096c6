"""A model whose truth is known to be avoidance: the concept's names mean the anchor, and nothing else changes.

The rows of the token embedding that belong to the concept's names become the anchor's row. The UNet, and with it what
the model knows about the concept, stays the same bit for bit: any way to the concept other than its names brings it
back.
"""

from typing import Any

import torch
from transformers import CLIPTokenizer

from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser


@torch.no_grad()
def redirect_names(text_encoder: Any, tokenizer: CLIPTokenizer, concept: Concept) -> None:
    """Set a text tower's embedding of every name of the concept to the anchor's.

    Raises:
        ValueError: a name, or the anchor, is not a single token.
    """
    rows = text_encoder.get_input_embeddings().weight
    anchor = token_of(tokenizer, concept.anchor)
    for name in concept.names:
        rows[token_of(tokenizer, name)] = rows[anchor]


@eraser("redirected")
def redirect(subject: Subject, concept: Concept) -> None:
    """Set the embedding of every name of the concept to the anchor's.

    Raises:
        ValueError: a name, or the anchor, is not a single token.
    """
    redirect_names(subject.text_encoder, subject.tokenizer, concept)


def single_token(subject: Subject, word: str) -> int:
    """Return the id of a word that is one token.

    Raises:
        ValueError: it is not one token.
    """
    return token_of(subject.tokenizer, word)


def token_of(tokenizer: CLIPTokenizer, word: str) -> int:
    """Return the id of a word that is one token.

    Raises:
        ValueError: it is not one token.
    """
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens, not one")
    return int(ids[0])
