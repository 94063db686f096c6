"""The battery of an audit: what its descriptions say of its evaluations, and what was observed in each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unerase.v1.types_pb2 import EvaluationClass, EvaluationDescription, EvaluationRequest, Observation, ResultKind


def is_measure(description: EvaluationDescription) -> bool:
    """Whether an evaluation has figures and no outcome."""
    return description.evaluation_class == EvaluationClass.EVALUATION_CLASS_MEASURE


@dataclass(frozen=True)
class Battery:
    """The evaluations of an audit."""

    described: Mapping[str, EvaluationDescription]
    """Those of the battery, and every required one, in the order in which they are named."""
    requests: Mapping[str, EvaluationRequest]
    """By name, in the order of the battery."""
    observations: Mapping[str, Sequence[Observation]]
    """By evaluation of the battery."""

    @classmethod
    def of(
        cls,
        observations: Iterable[Observation],
        descriptions: Sequence[EvaluationDescription],
        requested: Sequence[EvaluationRequest],
    ) -> "Battery":
        """Sort an audit's observations; those of other evaluations are left out.

        Raises:
            ValueError: if an evaluation of the battery is not described.
        """
        described = {description.name: description for description in descriptions}
        requests = {request.name: request for request in requested}
        if unknown := sorted(requests.keys() - described.keys()):
            raise ValueError(f"evaluations without a description: {', '.join(unknown)}")
        by_evaluation: dict[str, list[Observation]] = {name: [] for name in requests}
        for observation in observations:
            if observation.evaluation in by_evaluation:
                by_evaluation[observation.evaluation].append(observation)
        return cls(described, requests, by_evaluation)

    @property
    def required(self) -> list[str]:
        """The evaluations that a complete battery holds, whether this one does or not."""
        return [name for name, description in self.described.items() if description.required]

    @property
    def plain(self) -> list[str]:
        """The evaluations of the battery that hand the model the prompt alone."""
        plain = EvaluationClass.EVALUATION_CLASS_PLAIN
        return [name for name in self.described if name in self.requests and self._class(name) == plain]

    @property
    def relied_on(self) -> list[str]:
        """The evaluations on which it rests that a concept is removed: the required ones, and the plain prompt."""
        return [name for name in self.described if name in {*self.required, *self.plain}]

    def of_kind(self, kind: ResultKind.ValueType) -> list[Observation]:
        """Return the observations of the measure whose result is of this kind; none where the battery lacks it."""
        return [
            observation
            for name in self.requests
            if self.described[name].result == kind
            for observation in self.observations[name]
        ]

    def tabled(self) -> Iterator[tuple[EvaluationDescription, Sequence[Observation]]]:
        """Yield the measures whose result is a table of their own figures."""
        for name in self.requests:
            description = self.described[name]
            if is_measure(description) and description.result == ResultKind.RESULT_KIND_UNSPECIFIED:
                yield description, self.observations[name]

    def _class(self, name: str) -> EvaluationClass.ValueType:
        return self.described[name].evaluation_class
