"""How an evaluation declares itself.

A probe is `async def run(unit, models, parameters) -> list[Observation]`; an attack is handed a workbench in place of
the parameters, on which it finds them and the model with gradients, reports progress and leaves what it found. Third
parties register through the entry points `unerase.probes` and `unerase.attacks`, whose modules are imported once.
"""

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from unerase.v1.types_pb2 import EvaluationClass, EvaluationDescription, ModelRole, Observation, ParameterDescription

Run = Callable[..., Awaitable[list[Observation]]]


@dataclass(frozen=True)
class Evaluation:
    """A registered evaluation: what it is and what runs it."""

    description: EvaluationDescription
    run: Run


class Registry:
    """The evaluations of one room, by name."""

    def __init__(self, package: str, entry_point_group: str) -> None:
        self._package = package
        self._group = entry_point_group
        self._evaluations: dict[str, Evaluation] = {}
        self._loaded = False

    def register(
        self,
        name: str,
        *,
        title: str,
        summary: str,
        evaluation_class: EvaluationClass.ValueType,
        parameters: Sequence[ParameterDescription] = (),
        deciding_arms: Sequence[str] = (),
        required: bool = False,
        attack: bool = False,
        cases_per_unit: int = 0,
        others: bool = False,
        roles: Sequence[ModelRole.ValueType] = (),
    ) -> Callable[[Run], Run]:
        """Register the decorated `run` under `name`.

        Without `deciding_arms` every arm decides; "prompt@*" stands for every arm that begins so. `others` asks for
        every other concept of the catalogue; a measure may name the `roles` of which it is taken.
        """

        def decorate(run: Run) -> Run:
            if name in self._evaluations:
                raise ValueError(f"the evaluation {name!r} is registered twice")
            description = EvaluationDescription(
                name=name,
                title=title,
                summary=summary,
                evaluation_class=evaluation_class,
                parameters=parameters,
                deciding_arms=deciding_arms,
                required=required,
                attack=attack,
                cases_per_unit=cases_per_unit,
                others=others,
                roles=roles,
                source_digest=_source_digest(run),
            )
            self._evaluations[name] = Evaluation(description, run)
            return run

        return decorate

    def all(self) -> dict[str, Evaluation]:
        """Return every evaluation by name, those of third parties included."""
        if not self._loaded:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            for entry_point in entry_points(group=self._group):
                entry_point.load()
            self._loaded = True
        return dict(sorted(self._evaluations.items()))


def _source_digest(run: Run) -> str:
    file = inspect.getsourcefile(run)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def parameter(
    name: str,
    description: str,
    default: float | Sequence[float],
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    integer: bool = False,
) -> ParameterDescription:
    """Describe a parameter: a number, or a list of numbers where the default is one."""
    value = Value()
    is_list = not isinstance(default, (int, float))
    json_format.Parse(json.dumps(list(default) if isinstance(default, Sequence) else default), value)
    described: dict[str, Any] = {"minimum": minimum, "maximum": maximum}
    return ParameterDescription(
        name=name,
        description=description,
        default_value=value,
        integer=integer,
        list=is_list,
        **{key: bound for key, bound in described.items() if bound is not None},
    )
