"""UCE on a joint-attention transformer: a closed-form edit of the two linear layers that read text.

In a UNet the keys and values of cross-attention read the text embedding itself, and UCE edits those
(`testbed/erasers/uce.py` has the objective and its solution). The blocks of a joint-attention transformer read no text
embedding: from the first block on, text tokens depend on the picture. What reads the text is `context_embedder`, token
by token, and the first layer of `time_text_embed.text_embedder`, the projected text as a whole. The authors' own edit
of FLUX changes these two (`trainscripts/uce_flux_edit.py` of their repository); so does this one. Their biases stay,
since source and target share them.

The text tokens are those of every position from the name to the last padding, in every template, as for the UNet; the
projected text depends on the name, so there is one pair a template and name.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from unerase_backend.testbed.erasers.uce import RIDGE, solve
from unerase_backend.testbed.flow.erasers._registry import Concept, Subject, eraser


def _named(concept: Concept) -> Iterator[tuple[str, str, str]]:
    """Yield each template, with a name to edit or to preserve, and the name whose meaning it gets."""
    for source, target in (
        *((name, concept.anchor) for name in concept.names),
        *((kept, kept) for kept in (*concept.preserve, concept.anchor)),
    ):
        for template in concept.templates:
            yield template, source, target


def pairs(subject: Subject, concept: Concept) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return sources and targets, each (N, 128), of text tokens, and sources and targets, each (P, 112), as a whole."""
    named = list(_named(concept))
    first = [1 + len(template.split("{}", maxsplit=1)[0].split()) for template, _, _ in named]
    encodings = [subject.encode([template.format(names[which]) for template, *names in named]) for which in range(2)]

    def tokens(states: Tensor) -> Tensor:
        return torch.cat([row[start:] for row, start in zip(states, first, strict=True)])

    source, target = encodings
    return (tokens(source.states), tokens(target.states)), (source.pooled, target.pooled)


def readers(subject: Subject) -> Sequence[nn.Parameter]:
    """Return the matrices that read text tokens and projected texts, not copies of them."""
    transformer = subject.transformer
    return transformer.context_embedder.weight, transformer.time_text_embed.text_embedder.linear_1.weight


@eraser("uce")
@torch.no_grad()
def erase_uce(subject: Subject, concept: Concept) -> None:
    """Edit the two matrices that read text."""
    for matrix, (sources, targets) in zip(readers(subject), pairs(subject, concept), strict=True):
        matrix.copy_(solve(matrix, sources, targets, RIDGE))
