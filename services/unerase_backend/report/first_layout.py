"""What the first layout of exported observations (1.0) left unsaid, and the verdict of that time knew by name.

Its descriptions are of the battery alone, so that the required evaluations that it lacked are missing, and they do not
say what the verdict makes of a measure. These tables are history: they do not change with the evaluations there are.
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
    """Return the descriptions of a file in the first layout as a later one would have them."""
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
