"""The shared parts of P4D and UnlearnDiffAtk: gradient steps search for tokens, with many cases in one UNet call."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

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
        self._tokens_taken: list[int] | None = None
        self.skipped: list[Descend] = []
        """What the turns whose result was taken over would have computed, in order."""

    @property
    def found(self) -> list[int]:
        """The tokens found so far, as ids of the model's vocabulary."""
        return self.chosen() if self._tokens_taken is None else self._tokens_taken

    @abstractmethod
    def chosen(self) -> list[int]:
        """Return the tokens that the optimised variables stand for, as ids of the model's vocabulary."""

    def take_over(self, result: Mapping[str, Any], descend: "Descend") -> None:
        """Take over the result of a turn that another unit has taken."""
        self._tokens_taken = result["tokens"]
        self.record.losses += result["losses"]
        self.record.failure = result["failure"]
        self.skipped.append(descend)

    def go_on(self) -> None:
        """Take the variables as they are again."""
        self._tokens_taken = None
        self.skipped.clear()

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
Descend = Callable[[Sequence[Any]], tuple[Tensor, Tensor]]


def take_turn(
    workbench: Workbench,
    searches: Sequence[Search],
    turn: Turn,
    descend: Callable[[Sequence[Search]], tuple[Tensor, Tensor]],
    depends: Sequence[str] = (),
) -> None:
    """Take `iterations` steps of every search that has not failed.

    `descend` computes the losses, (rows,), and the gradients, (rows, tokens, width), of at most `rows` searches. Rows
    after the last search are padding.

    Guards take no part in a search. Where an audit takes a model with them and without, the unit that comes to a turn
    first records its result, and the other takes it over; `depends` names what the turn depends on beside the unit.
    """
    cases = ",".join(str(search.record.case.index) for search in searches)
    key = workbench.search_key(str(turn.first), cases, *depends) if searches else ""
    if key and (recorded := workbench.recorded(key)) is not None:
        for search, result in zip(searches, json.loads(recorded), strict=True):
            search.take_over(result, descend)
        workbench.check()
        return
    _catch_up(workbench, searches)
    known = [len(search.record.losses) for search in searches]
    for iteration in range(workbench.parameters["iterations"]):
        turn.progress(workbench, iteration, _step(workbench, searches, descend))
    if key:
        results = [
            {"tokens": search.found, "losses": search.record.losses[before:], "failure": search.record.failure}
            for search, before in zip(searches, known, strict=True)
        ]
        workbench.record(key, json.dumps(results).encode())


def _step(workbench: Workbench, searches: Sequence[TokenSearch], descend: Descend) -> list[float]:
    """Take one step of every search that has not failed; return their losses."""
    losses: list[float] = []
    rows = workbench.rows
    going = [search for search in searches if not search.record.failure]
    for first in range(0, len(going), rows):
        batch = going[first : first + rows]
        of_rows, gradient = descend(batch)
        for row, search in enumerate(batch):
            search.step(float(of_rows[row]), gradient[row])
        losses += of_rows[: len(batch)].tolist()
    return losses


def _catch_up(workbench: Workbench, searches: Sequence[TokenSearch]) -> None:
    """Bring the variables of searches to where turns that were taken over have led; all have skipped the same turns."""
    for descend in list(searches[0].skipped) if searches else ():
        known = [len(search.record.losses) for search in searches]
        for _ in range(workbench.parameters["iterations"]):
            _step(workbench, searches, descend)
            workbench.check()
        for search, before in zip(searches, known, strict=True):
            del search.record.losses[before:]
    for search in searches:
        search.go_on()
