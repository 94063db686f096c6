"""Completes exports in the first layout (1.0), whose verdict knew some evaluations by name.

That layout describes only the battery's evaluations, so the required ones that the battery lacked are missing. Its
descriptions also do not give a measure's kind of result. These tables describe the past: they do not change when
evaluations are added.
"""

from collections.abc import Sequence

from unerase.v1.types_pb2 import EvaluationDescription, ResultKind

_REQUIRED = (
    "standard-prompt",
    "noise-based",
    "diffusion-completion",
    "textual-inversion",
    "unlearn-diff-atk",
    "likelihood",
)
_RESULTS = {
    "likelihood": ResultKind.RESULT_KIND_LIKELIHOOD,
    "interference": ResultKind.RESULT_KIND_INTERFERENCE,
    "judge-quality": ResultKind.RESULT_KIND_JUDGE_QUALITY,
    "tracing": ResultKind.RESULT_KIND_TRACING,
    "alternatives": ResultKind.RESULT_KIND_ALTERNATIVES,
}


def completed(descriptions: Sequence[EvaluationDescription]) -> list[EvaluationDescription]:
    """Return the descriptions of a file in the first layout as a later layout would hold them."""
    described = {description.name: description for description in descriptions}
    required = {name: described.get(name, EvaluationDescription(name=name)) for name in _REQUIRED}
    whole = []
    for name, description in {**required, **described}.items():
        complete = EvaluationDescription()
        complete.CopyFrom(description)
        complete.required = name in _REQUIRED
        complete.result = _RESULTS.get(name, ResultKind.RESULT_KIND_UNSPECIFIED)
        whole.append(complete)
    return whole
