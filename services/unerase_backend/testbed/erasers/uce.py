"""UCE: Unified Concept Editing (Gandikota, Orgad, Belinkov, Materzynska, Bau, WACV 2024, arXiv 2308.14761, equations 6
and 7).

A cross-attention layer reads a text embedding c through two matrices, keys and values. Each matrix W_old (out, width)
is replaced by the minimiser of

    sum_i |W c_i - W_old a_i|^2  +  sum_j |W c_j - W_old c_j|^2  +  ridge |W - W_old|^2

over the concept's embeddings c_i, sent to the anchor's a_i, and the preserved c_j. Its normal equations give the
closed form

    W = (sum_i W_old a_i c_i^T + sum_j W_old c_j c_j^T + ridge W_old) (sum_i c_i c_i^T + sum_j c_j c_j^T + ridge I)^-1.

The embeddings are those of every position from the name to the last padding, in every template: the text tower's
attention is causal, so positions before the name are the same for both, and all later ones depend on the concept. Names
and anchor are one token each, so their positions correspond.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser
from unerase_backend.testbed.unet import encode_prompts

RIDGE = 0.5


def solve(old: Tensor, sources: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return the minimiser W (out, width) of sum_i |W s_i - W_old t_i|^2 + ridge |W - W_old|^2, in float64.

    `old` is W_old (out, width). `sources` and `targets` are embeddings (N, width); for preserved concepts their rows
    are equal.
    """
    matrix, s, t = old.double(), sources.double(), targets.double()
    wanted = matrix @ t.T @ s + ridge * matrix
    gram = s.T @ s + ridge * torch.eye(s.shape[1], dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(gram, wanted.T)
    return solved.T


def embeddings_from(subject: Subject, template: str, name: str) -> Tensor:
    """Return the text embeddings (positions, width) of a template with a name in it, from the name's position on."""
    prompt = template.format(name)
    before = template.split("{}", maxsplit=1)[0].split()
    return encode_prompts(subject.text_encoder, subject.tokenizer, [prompt])[0, 1 + len(before) :]


def pairs(subject: Subject, concept: Concept) -> tuple[Tensor, Tensor]:
    """Return sources and targets, each (N, width): the concept's with the anchor's, the preserved with themselves."""
    sources: list[Tensor] = []
    targets: list[Tensor] = []

    def add(source: Sequence[str], target: str) -> None:
        for template in concept.templates:
            for name in source:
                sources.append(embeddings_from(subject, template, name))
                targets.append(embeddings_from(subject, template, target))

    add(concept.names, concept.anchor)
    for kept in (*concept.preserve, concept.anchor):
        add([kept], kept)
    return torch.cat(sources), torch.cat(targets)


def matrices(subject: Subject) -> list[nn.Parameter]:
    """Return the key and value matrices (out, width) of every cross-attention layer, not copies of them."""
    names = ("attn2.to_k", "attn2.to_v")
    return [module.weight for name, module in subject.unet.named_modules() if name.endswith(names)]


@eraser("uce")
@torch.no_grad()
def erase_uce(subject: Subject, concept: Concept) -> None:
    """Edit the key and value matrices of every cross-attention layer."""
    sources, targets = pairs(subject, concept)
    for matrix in matrices(subject):
        matrix.copy_(solve(matrix, sources, targets, RIDGE))
