"""A model whose truth is known to be avoidance: the concept's names mean the anchor, and nothing else changes.

The rows of the token embedding that belong to the concept's names become the anchor's row. The UNet, and with it what
the model knows about the concept, stays the same bit for bit: any way to the concept other than its names brings it
back.
"""

import torch

from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser


@eraser("redirected")
@torch.no_grad()
def redirect(subject: Subject, concept: Concept) -> None:
    """Set the embedding of every name of the concept to the anchor's.

    Raises:
        ValueError: a name, or the anchor, is not a single token.
    """
    rows = subject.text_encoder.get_input_embeddings().weight
    anchor = single_token(subject, concept.anchor)
    for name in concept.names:
        rows[single_token(subject, name)] = rows[anchor]


def single_token(subject: Subject, word: str) -> int:
    """Return the id of a word that is one token.

    Raises:
        ValueError: it is not one token.
    """
    ids = subject.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens, not one")
    return int(ids[0])
