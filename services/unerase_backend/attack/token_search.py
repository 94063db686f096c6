"""The shared parts of P4D and UnlearnDiffAtk: gradient steps search for tokens, with many cases in one UNet call."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from unerase.v1.types_pb2 import ParameterDescription
from unerase_backend.attack.prompts import CaseRecord, Turn
from unerase_backend.attack.workbench import Workbench
from unerase_backend.evaluation.registry import parameter


def search_parameters(
    optimiser: str, learning_rate: float, *, maximum_learning_rate: float
) -> list[ParameterDescription]:
    """Describe the parameters of the optimiser and of its UNet calls."""
    return [
        parameter(
            "learning_rate", f"{optimiser}'s learning rate.", learning_rate, minimum=1e-6, maximum=maximum_learning_rate
        ),
        parameter("weight_decay", f"{optimiser}'s weight decay.", 0.1, minimum=0.0, maximum=10.0),
        parameter("rows", "Cases in one call of the UNet.", 24, minimum=1, maximum=256, integer=True),
    ]


class TokenSearch(ABC):
    """One search of one case, independent of the other cases."""

    def __init__(self, record: CaseRecord) -> None:
        self.record = record

    @abstractmethod
    def move(self, gradient: Tensor) -> None:
        """Take an optimiser step, with the gradient at the embeddings of the last UNet call."""

    def step(self, loss: float, gradient: Tensor) -> None:
        """Take a step with a gradient, (tokens, width); a gradient that is not finite ends the search."""
        if not bool(torch.isfinite(gradient).all()):
            self.record.failure = f"the gradient was not finite at step {len(self.record.losses) + 1}"
            return
        self.move(gradient)
        self.record.losses.append(loss)


Search = TypeVar("Search", bound=TokenSearch)


def take_turn(
    workbench: Workbench,
    searches: Sequence[Search],
    turn: Turn,
    descend: Callable[[Sequence[Search]], tuple[Tensor, Tensor]],
) -> None:
    """Take `iterations` steps of every search that has not failed.

    `descend` computes the losses, (rows,), and the gradients, (rows, tokens, width), of at most `rows` searches. Rows
    after the last search are padding.
    """
    rows = workbench.rows
    for iteration in range(workbench.parameters["iterations"]):
        losses: list[float] = []
        going = [search for search in searches if not search.record.failure]
        for first in range(0, len(going), rows):
            batch = going[first : first + rows]
            of_rows, gradient = descend(batch)
            for row, search in enumerate(batch):
                search.step(float(of_rows[row]), gradient[row])
            losses += of_rows[: len(batch)].tolist()
        turn.progress(workbench, iteration, losses)
