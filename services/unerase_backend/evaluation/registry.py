"""The registration of evaluations.

Each room has its own registry, typed by the function that runs its evaluations: `probing.registry.ProbeRun` and
`attack.registry.AttackRun`. Third parties register through the entry points `unerase.probes` and `unerase.attacks`,
whose modules are imported once.
"""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_UNSPECIFIED,
    RESULT_KIND_UNSPECIFIED,
    EvaluationClass,
    EvaluationDescription,
    ModelCapability,
    ModelRole,
    Observation,
    ParameterDescription,
    ResultKind,
)
from unerase_backend.evaluation.applicability import unknown_needs
from unerase_backend.evaluation.cost import formula_problem
from unerase_backend.evaluation.parameters import Parameters, resolve_parameters
from unerase_backend.runtime.components import Components, RegistrationError, third_party
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.source import component_digest

Run = TypeVar("Run", bound=Callable[..., Awaitable[list[Observation]]])
"""The type of the functions that run the evaluations of one room."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Evaluation(Generic[Run]):
    """A registered evaluation: its description and the function that runs it."""

    description: EvaluationDescription
    run: Run


class Registry(Generic[Run]):
    """The evaluations of one room, by name; a third party may not take a name from the package `beside`."""

    def __init__(self, package: str, entry_point_group: str, beside: str = "") -> None:
        self._evaluations = Components[Evaluation[Run]]("evaluation", package, entry_point_group, beside)

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
        reference_begins: bool = False,
        result: ResultKind.ValueType = RESULT_KIND_UNSPECIFIED,
        without_model: bool = False,
        weights_only: bool = False,
        least_pictures: int = 0,
        others_pictures: bool = False,
        needs: Sequence[ModelCapability.ValueType] = (),
        pictures: str = "",
        rows: str = "",
    ) -> Callable[[Run], Run]:
        """Register the decorated `run` under `name`.

        The arguments are the fields of `EvaluationDescription`. Without `deciding_arms` every arm decides; "prompt@*"
        matches every arm that begins "prompt@". `pictures` and `rows` are formulas (`evaluation/cost.py`). Raises as
        `_add`.
        """

        def decorate(run: Run) -> Run:
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
                reference_begins=reference_begins,
                result=result,
                without_model=without_model,
                weights_only=weights_only,
                least_pictures=least_pictures,
                others_pictures=others_pictures,
                needs=needs,
                pictures=pictures,
                rows=rows,
                source_digest=component_digest(run.__module__),
            )
            self._add(description, run)
            return run

        return decorate

    def _add(self, description: EvaluationDescription, run: Run) -> None:
        """Add an evaluation.

        Raises:
            RegistrationError: the name is taken, or the description is incomplete or inconsistent.
        """
        _refuse_bad(description, run)
        self._evaluations.add(description.name, Evaluation(description, run), run.__module__)

    def all(self) -> dict[str, Evaluation[Run]]:
        """Return every evaluation by name, including those of third parties."""
        return self._evaluations.all()

    def broken(self) -> dict[str, str]:
        """Return the entry points that cannot be used, by name, each with its distribution and the reason."""
        return self._evaluations.broken()


def _refuse_bad(description: EvaluationDescription, run: Callable[..., Awaitable[list[Observation]]]) -> None:
    """Raise if the description is wrong in a way that only an audit would show, such as a default of the wrong type."""
    problems = []
    if not _NAME.fullmatch(description.name):
        problems.append('its name must be lower-case words and digits, joined by "-"')
    problems += [f"it has no {field}" for field in ("title", "summary") if not getattr(description, field)]
    evaluation_class = description.evaluation_class
    if evaluation_class == EVALUATION_CLASS_UNSPECIFIED or evaluation_class not in EvaluationClass.values():
        problems.append(f"there is no evaluation class {evaluation_class}")
    if evaluation_class != EVALUATION_CLASS_MEASURE:
        problems += _problems_of_no_measure(description)
    if description.roles and description.without_model:
        problems.append("it names roles, and no model")
    problems += [f"there is no model capability {need}" for need in unknown_needs(description)]
    if description.needs and description.without_model:
        problems.append("it needs something of a model, and has none")
    if description.result and third_party():
        problems.append("its result is of a kind that only our own measures have; leave it out, and it becomes a table")
    names = [parameter.name for parameter in description.parameters]
    problems += [f"the parameter {name!r} occurs twice" for name in sorted(set(names)) if names.count(name) > 1]
    try:
        parameters = resolve_parameters(description, Struct(), field="default")
    except InvalidRequestError as error:
        problems += [f"the {each.field.replace('.', ' of ', 1)} {each.description}" for each in error.violations]
    else:
        problems += _formula_problems(description, parameters)
    if not inspect.iscoroutinefunction(run):
        problems.append("it must be an async function")
    if problems:
        raise RegistrationError(f"the evaluation {description.name!r}: {'; '.join(problems)}")


def _problems_of_no_measure(description: EvaluationDescription) -> list[str]:
    given = {
        "name the roles that it is taken for": bool(description.roles),
        "be without a model": description.without_model,
        "measure the weights alone": description.weights_only,
        "have a result of its own kind": bool(description.result),
    }
    return [f"only a measure may {what}" for what, there in given.items() if there]


def _formula_problems(description: EvaluationDescription, parameters: Parameters) -> list[str]:
    formulas = {"pictures": description.pictures, "rows": description.rows}
    if len({bool(formula) for formula in formulas.values()}) > 1:
        return ["pictures and rows: give both, or neither"]
    found = {name: formula_problem(formula, parameters) for name, formula in formulas.items() if formula}
    return [f"the formula of {name}: {problem}" for name, problem in found.items() if problem]


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
