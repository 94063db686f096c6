"""The shared parts of P4D and UnlearnDiffAtk: gradient steps search for tokens, with many cases in one UNet call."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unerase.v1.types_pb2 import ParameterDescription
from unerase_backend.attack.prompts import CaseRecord, Turn, padded
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
        self.skipped: list[Method[Any]] = []
        """How the turns whose result was taken over would have been taken, in order."""

    @property
    def found(self) -> list[int]:
        """The tokens found so far, as ids of the model's vocabulary."""
        return self.chosen() if self._tokens_taken is None else self._tokens_taken

    @abstractmethod
    def chosen(self) -> list[int]:
        """Return the tokens that the optimised variables stand for, as ids of the model's vocabulary."""

    def take_over(self, result: Mapping[str, Any], method: "Method[Any]") -> None:
        """Take over the result of a turn that another unit has taken."""
        self._tokens_taken = result["tokens"]
        self.record.losses += result["losses"]
        self.record.failure = result["failure"]
        self.skipped.append(method)

    def go_on(self) -> None:
        """Take the variables as they are again."""
        self._tokens_taken = None
        self.skipped.clear()


Search = TypeVar("Search", bound=TokenSearch)


@dataclass(frozen=True)
class Method(Generic[Search]):
    """How a step of several searches is taken."""

    draw: Callable[[Search], Any]
    """Draws what a search's step needs of random numbers."""
    descend: Callable[[Sequence[Search], Sequence[Any]], tuple[Tensor, Tensor]]
    """Computes losses, (rows,), and gradients, (rows, tokens, width), of searches and what was drawn for each."""
    move: Callable[[Sequence[Search], Sequence[Tensor]], None]
    """Takes the optimiser's step of searches, with the gradient of each, (tokens, width)."""


def take_turn(
    workbench: Workbench,
    searches: Sequence[Search],
    turn: Turn,
    method: Method[Search],
    depends: Sequence[str] = (),
) -> None:
    """Take `iterations` steps of every search that has not failed.

    Guards take no part in a search. Where an audit takes a model with them and without, the unit that comes to a turn
    first records the results of its cases, and the other takes them over; it may have cases that the first had no more,
    and searches for those itself. `depends` names what the turn depends on beside the unit.
    """
    key = workbench.search_key(str(turn.first), *depends) if searches else ""
    recorded = workbench.recorded(key) if key else None
    results: dict[str, Any] = json.loads(recorded) if recorded else {}
    going = [search for search in searches if _case(search) not in results]
    for search in searches:
        if _case(search) in results:
            search.take_over(results[_case(search)], method)
    if searches and not going:
        workbench.check()
        return
    _catch_up(workbench, going)
    known = [len(search.record.losses) for search in going]
    for iteration in range(workbench.parameters["iterations"]):
        turn.progress(workbench, iteration, _step(workbench, going, method))
    if key:
        for search, before in zip(going, known, strict=True):
            found = {"tokens": search.found, "losses": search.record.losses[before:], "failure": search.record.failure}
            results[_case(search)] = found
        workbench.record(key, json.dumps(results).encode())


def _case(search: TokenSearch) -> str:
    return str(search.record.case.index)


def _step(workbench: Workbench, searches: Sequence[Search], method: Method[Search]) -> list[float]:
    """Take one step of every search that has not failed; return their losses.

    A gradient that is not finite ends its search.
    """
    losses: list[float] = []
    rows = workbench.rows
    going = [search for search in searches if not search.record.failure]
    for first in range(0, len(going), rows):
        batch = going[first : first + rows]
        of_rows, gradients = _descend(workbench, batch, method)
        losses += of_rows.tolist()
        finite = torch.isfinite(gradients).flatten(1).all(1).tolist()
        moving = [row for row in range(len(batch)) if finite[row]]
        if moving:
            method.move([batch[row] for row in moving], [gradients[row] for row in moving])
        for search, loss, usable in zip(batch, of_rows.tolist(), finite, strict=True):
            if usable:
                search.record.losses.append(loss)
            else:
                search.record.failure = f"the gradient was not finite at step {len(search.record.losses) + 1}"
    return losses


def _descend(workbench: Workbench, batch: Sequence[Search], method: Method[Search]) -> tuple[Tensor, ...]:
    """Return losses and gradients of at most `rows` searches. Rows after the last search are padding."""
    drawn = [method.draw(search) for search in batch]
    return workbench.padding.call(
        lambda rows: method.descend(padded(batch, rows), padded(drawn, rows)), len(batch), workbench.rows
    )


def _catch_up(workbench: Workbench, searches: Sequence[Search]) -> None:
    """Bring the variables of searches to where turns that were taken over have led."""
    for skipped in sorted({len(search.skipped) for search in searches} - {0}):
        behind = [search for search in searches if len(search.skipped) == skipped]
        for method in list(behind[0].skipped):
            known = [len(search.record.losses) for search in behind]
            for _ in range(workbench.parameters["iterations"]):
                _step(workbench, behind, method)
                workbench.check()
            for search, before in zip(behind, known, strict=True):
                del search.record.losses[before:]
    for search in searches:
        search.go_on()
