"""The evaluations that do not apply to the family of an audit's models: their results, and what is said of them.

They are no evidence for either side. What a required one would have shown is not known, though, so that nothing is
called removed without it.
"""

from collections.abc import Iterable, Iterator, Sequence

from unerase.v1.types_pb2 import ControlKind, EvaluationClass, EvaluationRequest
from unerase.v1.verdicts_pb2 import EvaluationResult, InapplicableEvaluation, Outcome, Verdict

NOT_APPLICABLE = "NOT_APPLICABLE"
"""The reason of a request, and of a campaign's cell, of which no evaluation applies to its models."""


def applying(battery: Iterable[EvaluationRequest]) -> list[str]:
    """Return the names of the evaluations of an audit's battery that apply to its models, in its order."""
    return [request.name for request in battery if not request.HasField("not_applicable")]


def results(evaluations: Iterable[InapplicableEvaluation]) -> Iterator[EvaluationResult]:
    """Yield the results of those that would have an outcome: they have no figures."""
    for one in evaluations:
        if one.evaluation_class != EvaluationClass.EVALUATION_CLASS_MEASURE:
            yield EvaluationResult(
                name=one.name,
                title=one.title,
                evaluation_class=one.evaluation_class,
                outcome=Outcome.OUTCOME_NOT_APPLICABLE,
                reason=f"is not applicable: {one.why.reason}",
                control_kind=ControlKind.CONTROL_KIND_NONE,
                not_applicable_because=one.why.reason,
            )


def measures(verdict: Verdict) -> list[InapplicableEvaluation]:
    """Return those that have no result among the verdict's evaluations, since they are measures."""
    shown = {result.name for result in verdict.evaluations}
    return [one for one in verdict.not_applicable if one.name not in shown]


def unanswered(verdict: Verdict) -> list[InapplicableEvaluation]:
    """Return those that `removed` needs."""
    return [one for one in verdict.not_applicable if one.required]


def by_reason(evaluations: Iterable[InapplicableEvaluation]) -> dict[str, list[str]]:
    """Return the names of those that do not apply for the same reason, by the reason."""
    found: dict[str, list[str]] = {}
    for one in evaluations:
        found.setdefault(one.why.reason, []).append(one.name)
    return found


def open_points(verdict: Verdict) -> Iterator[str]:
    """Yield what a verdict leaves open because required evaluations do not apply, by their reason."""
    for reason, names in by_reason(unanswered(verdict)).items():
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        yield f"{listed(names)} {are} not applicable, and nothing is called removed without {them}: {reason}"


def waived(verdict: Verdict) -> str:
    """Return in words which required evaluations a request went without since they do not apply; empty if none."""
    names = [one.name for one in unanswered(verdict)]
    return f"{listed(names)} {'does' if len(names) == 1 else 'do'} not apply to these models" if names else ""


def listed(names: Sequence[str]) -> str:
    """Return names as in "a, b and c"."""
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])
