"""The battery of an audit: what its descriptions say of its evaluations, and what was observed in each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unerase.v1.types_pb2 import (
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    NotApplicable,
    Observation,
    ResultKind,
)
from unerase.v1.verdicts_pb2 import InapplicableEvaluation


def is_measure(description: EvaluationDescription) -> bool:
    """Whether an evaluation gives figures instead of an outcome."""
    return description.evaluation_class == EvaluationClass.EVALUATION_CLASS_MEASURE


@dataclass(frozen=True)
class Battery:
    """The evaluations of an audit."""

    described: Mapping[str, EvaluationDescription]
    """Descriptions by name: those of the battery's evaluations and of every required one, in the order given."""
    requests: Mapping[str, EvaluationRequest]
    """Requests by name, in the order of the battery: of the evaluations that apply to the models."""
    observations: Mapping[str, Sequence[Observation]]
    """Observations by the name of their evaluation."""
    inapplicable: Mapping[str, NotApplicable] = field(default_factory=dict)
    """Why each of the battery's other evaluations does not apply to the models, in the order of the battery."""

    @classmethod
    def of(
        cls,
        observations: Iterable[Observation],
        descriptions: Sequence[EvaluationDescription],
        requested: Sequence[EvaluationRequest],
    ) -> "Battery":
        """Group an audit's observations by evaluation, and drop those of evaluations outside the battery.

        Raises:
            ValueError: an evaluation of the battery has no description.
        """
        described = {description.name: description for description in descriptions}
        if unknown := sorted({request.name for request in requested} - described.keys()):
            raise ValueError(f"evaluations without a description: {', '.join(unknown)}")
        inapplicable = {each.name: each.not_applicable for each in requested if each.HasField("not_applicable")}
        requests = {request.name: request for request in requested if request.name not in inapplicable}
        by_evaluation: dict[str, list[Observation]] = {name: [] for name in requests}
        for observation in observations:
            if observation.evaluation in by_evaluation:
                by_evaluation[observation.evaluation].append(observation)
        return cls(described, requests, by_evaluation, inapplicable)

    @property
    def required(self) -> list[str]:
        """The evaluations that a complete battery has, including those that this one lacks or that do not apply."""
        return [name for name, description in self.described.items() if description.required]

    @property
    def unanswered(self) -> list[str]:
        """The required evaluations that do not apply to the models: what they would have shown is not known."""
        return [name for name in self.required if name in self.inapplicable]

    @property
    def plain(self) -> list[str]:
        """The evaluations of the battery that give the model only the prompt."""
        plain = EvaluationClass.EVALUATION_CLASS_PLAIN
        return [name for name in self.described if name in self.requests and self._class(name) == plain]

    @property
    def relied_on(self) -> list[str]:
        """The evaluations that the conclusion "removed" relies on: the required ones and those of class plain."""
        return [name for name in self.described if name in {*self.required, *self.plain}]

    def of_kind(self, kind: ResultKind.ValueType) -> list[Observation]:
        """Return the observations of the measure with this kind of result; empty if the battery has no such measure."""
        return [
            observation
            for name in self.requests
            if self.described[name].result == kind
            for observation in self.observations[name]
        ]

    def tabled(self) -> Iterator[tuple[EvaluationDescription, Sequence[Observation]]]:
        """Yield each measure whose result is a table of its figures, with its observations."""
        for name in self.requests:
            description = self.described[name]
            if is_measure(description) and description.result == ResultKind.RESULT_KIND_UNSPECIFIED:
                yield description, self.observations[name]

    def not_applied(self) -> Iterator[InapplicableEvaluation]:
        """Yield the evaluations that do not apply to the models, in the order of the battery."""
        for name, why in self.inapplicable.items():
            one = self.described[name]
            yield InapplicableEvaluation(
                name=name,
                title=one.title,
                evaluation_class=one.evaluation_class,
                required=one.required,
                why=why,
            )

    def _class(self, name: str) -> EvaluationClass.ValueType:
        return self.described[name].evaluation_class
