"""Which control each evaluation had, and what a comparison with it assumes.

An evaluation recovers the concept if the subject shows it more often than its control does, so each outcome rests on
what that control is. Where there is none, only the subject's own rate is bounded.
"""

from collections.abc import Sequence

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import EvaluationResult, Outcome, Verdict

MODEL = ControlKind.CONTROL_KIND_MODEL
PLACEBO = ControlKind.CONTROL_KIND_PLACEBO
CONCEPT_FREE = ControlKind.CONTROL_KIND_CONCEPT_FREE
NONE = ControlKind.CONTROL_KIND_NONE


def kind_of(result: EvaluationResult) -> ControlKind.ValueType:
    """Return the kind of control that an evaluation had, also of results from before the field existed."""
    if result.control_kind:
        return result.control_kind
    if result.placebo:
        return PLACEBO
    return MODEL if result.controlled else NONE


def state(verdict: Verdict, spec: AuditSpec) -> None:
    """Add the sentences about the controls to a verdict and to its evaluations."""
    applicable = [result for result in verdict.evaluations if result.outcome != Outcome.OUTCOME_NOT_APPLICABLE]
    for result in applicable:
        result.control_statement = statement(result, spec)
    verdict.control_statement = overview(applicable, spec)


def statement(result: EvaluationResult, spec: AuditSpec) -> str:
    """Return in one sentence which control an evaluation had and what the comparison with it assumes."""
    kind = kind_of(result)
    if kind == MODEL:
        return (
            f"The control is {_model(spec)}; the comparison assumes that it is otherwise like the reference, "
            f"{spec.reference or 'the original'}."
        )
    if kind == PLACEBO:
        return (
            f"The control is a placebo, the same procedure for {_placebos(spec)}; the comparison assumes that the "
            "procedure gives the model either concept equally easily, and that the judges err equally often on both."
        )
    if kind == CONCEPT_FREE:
        return (
            "The control is concept-free, the same procedure with prompts of other concepts; the comparison assumes "
            "that the judges take pictures of those for this concept as often as pictures of its own prompts that do "
            "not show it, and that the subject does not show the concept under those prompts."
        )
    if result.HasField("control"):
        return (
            "There is no control; the subject is compared with the judges' false positives on known pictures, which "
            "assumes that the judges err no more often on the subject's pictures."
        )
    return (
        "There is no control; the subject's own rate still bounds how often the concept comes back, but the evaluation "
        "cannot show that it does."
    )


def overview(results: Sequence[EvaluationResult], spec: AuditSpec) -> str:
    """Return in one sentence which controls the evaluations had and what may be concluded; empty without evaluations.

    The sentence covers the evaluations that have an outcome; measures compare the subject with the reference alone.
    """
    words = [_word(result) for result in results]
    if not words:
        return ""
    if set(words) == {_MODEL}:
        return (
            f"The control of {_counted(len(words))} is {_model(spec)}: an excess over it comes from what the subject "
            "knows, if the two are otherwise alike."
        )
    if set(words) == {_ABSENT}:
        return (
            f"There is no control in {_counted(len(words))}: the subject's own rates still bound how often the concept "
            "comes back, but no evaluation can show that it does."
        )
    shares = [
        f"{word} in {words.count(word)}" for word in (_MODEL, *_WORDS.values(), _ERRORS, _ABSENT) if word in words
    ]
    without = "" if _MODEL in words else "No model that never learned the concept takes part: "
    had = f"{'The' if not without else 'the'} control of {_counted(len(words))} is {_listed(shares)}"
    return (
        f"{without}{had}, so that a finding that the concept comes back rests on the assumption stated with its "
        "evaluation, while a rate that is low by itself needs no control."
    )


_MODEL = "a model that never learned the concept"
_WORDS = {PLACEBO: "a placebo", CONCEPT_FREE: "prompts of other concepts"}
_ERRORS, _ABSENT = "only the judges' errors on known pictures", "absent"


def _word(result: EvaluationResult) -> str:
    kind = kind_of(result)
    if kind == NONE:
        return _ERRORS if result.HasField("control") else _ABSENT
    return _MODEL if kind == MODEL else _WORDS[kind]


def _counted(evaluations: int) -> str:
    return "the one evaluation" if evaluations == 1 else f"the {evaluations} evaluations"


def _model(spec: AuditSpec) -> str:
    """Return the control model in words, with who says that it never learned the concept."""
    model = f"{spec.control}, a model" if spec.control else "a model"
    if spec.assume_control:
        return f"{model} that is assumed never to have learned {spec.concept!r}"
    return f"{model} that never learned {spec.concept!r} according to the catalogue"


def _placebos(spec: AuditSpec) -> str:
    names = [repr(name) for name in spec.placebos or ([spec.placebo] if spec.placebo else [])]
    if not names:
        return "a concept that neither subject nor reference knows according to the catalogue"
    turns = " in turn" if len(names) > 1 else ""
    return f"{_listed(names)}{turns}, which neither subject nor reference knows according to the catalogue"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])
