"""RECE: Reliable and Efficient Concept Erasure (Gong, Chen, Wei, Chen, Jiang, ECCV 2024, arXiv 2407.12383).

UCE (``uce.py``) first. Then, some epochs long, the embedding that brings the concept back is derived in closed form and
erased as UCE erases a name. With W_k the edited and V_k the original key and value matrices of all cross-attention
layers, the embedding that the edited model reads as the original reads c is the minimiser of

    sum_k |W_k c' - V_k c|^2 + regularisation |c'|^2

    c' = (regularisation I + sum_k W_k^T W_k)^-1 (sum_k W_k^T V_k) c

The regulariser keeps c' short, and with it the edit: erasing a long c' changes the matrices everywhere. The edit of an
epoch is UCE's objective with the sources c', the targets of the concept's anchor, and W_k as W_old; what is to be kept
is kept in every epoch. As in UCE, the embeddings are those of every position from the name on, in every template.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unerase_backend.testbed.erasers import uce
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

EPOCHS = 5
REGULARISATION = 0.1


def derive(edited: Sequence[Tensor], original: Sequence[Tensor], embeddings: Tensor, regularisation: float) -> Tensor:
    """The embeddings (N, width) that the edited matrices (out, width) read most nearly as the original ones read
    ``embeddings`` (N, width), in float64.
    """
    gram = sum((w.double().T @ w.double() for w in edited), regularisation * torch.eye(embeddings.shape[1]).double())
    cross = torch.stack([w.double().T @ v.double() for w, v in zip(edited, original, strict=True)]).sum(0)
    solved: Tensor = torch.linalg.solve(gram, cross @ embeddings.double().T)
    return solved.T


@eraser("rece")
@torch.no_grad()
def erase_rece(subject: Subject, concept: Concept, epochs: int = EPOCHS) -> None:
    """Edits the key and value matrices of every cross-attention layer, once as UCE and once an epoch."""
    sources, targets = uce.pairs(subject, concept)
    moved = (sources != targets).any(1)
    matrices = uce.matrices(subject)
    original = [matrix.clone() for matrix in matrices]
    uce.erase_uce(subject, concept)
    for _ in range(epochs):
        found = derive(matrices, original, sources[moved], REGULARISATION)
        sources, targets = torch.cat([found.float(), sources]), torch.cat([targets[moved], targets])
        moved = torch.cat([torch.zeros(len(found), dtype=torch.bool), moved])
        for matrix in matrices:
            matrix.copy_(uce.solve(matrix, sources, targets, uce.RIDGE))
