"""RECE: Reliable and Efficient Concept Erasure (Gong, Chen, Wei, Chen, Jiang, ECCV 2024, arXiv 2407.12383).

The first edit is UCE's (`uce.py`). Then, in each epoch, the embedding that brings the concept back is derived in closed
form and erased in the way UCE erases a name. With W_k the edited and V_k the original key and value matrices of all
cross-attention layers, the embedding that means to the edited model what c means to the original minimises

    sum_k |W_k c' - V_k c|^2 + regularisation |c'|^2

    c' = (regularisation I + sum_k W_k^T W_k)^-1 (sum_k W_k^T V_k) c

The regulariser keeps c' short, and with it the edit: erasing a long c' changes the matrices everywhere. The edit of an
epoch is UCE's objective with the sources c', the targets of the concept's anchor, and W_k as W_old. The objective
includes the preserved concepts in every epoch. As in UCE, the embeddings are those of every position from the name on,
in every template.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unerase_backend.testbed.erasers import uce
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

EPOCHS = 5
REGULARISATION = 0.1


def derive(edited: Sequence[Tensor], original: Sequence[Tensor], embeddings: Tensor, regularisation: float) -> Tensor:
    """Return the embeddings c' (N, width), computed in float64.

    For c' the edited matrices (out, width) give nearly what the original ones give for `embeddings`, (N, width).
    """
    gram = sum((w.double().T @ w.double() for w in edited), regularisation * torch.eye(embeddings.shape[1]).double())
    cross = torch.stack([w.double().T @ v.double() for w, v in zip(edited, original, strict=True)]).sum(0)
    solved: Tensor = torch.linalg.solve(gram, cross @ embeddings.double().T)
    return solved.T


@eraser("rece")
@torch.no_grad()
def erase_rece(subject: Subject, concept: Concept, epochs: int = EPOCHS) -> None:
    """Edit the key and value matrices of every cross-attention layer, first as UCE does, then once in each epoch."""
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
