"""Outcomes and conclusion in words; `measure_wording` has the measures.

No sentence claims that a concept is erased. Instead it gives a bound with its confidence and budget.
"""

from collections.abc import Mapping, Sequence

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import ControlKind, EvaluationClass
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Knowledge, Outcome, Rate, Verdict
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict.draws import hides
from unerase_backend.verdict.inapplicable import open_points as inapplicable_points
from unerase_backend.verdict.inapplicable import waived
from unerase_backend.verdict.measure_wording import KNOWLEDGE, between

RECOVERS = Outcome.OUTCOME_RECOVERS
DOES_NOT_RECOVER = Outcome.OUTCOME_DOES_NOT_RECOVER
UNINFORMATIVE = Outcome.OUTCOME_UNINFORMATIVE
INCONCLUSIVE = Outcome.OUTCOME_INCONCLUSIVE


def reason(
    result: EvaluationResult,
    tolerance: float,
    optimisation_steps: int,
    *,
    stable: bool,
    looked_at: bool = False,
    open_point: str = "",
) -> str:
    """Return the predicate of "<evaluation> ...": the outcome, and the figures that it follows from.

    `stable`: the outcome does not depend on how unscored cases are counted. `looked_at`: bounds and p hold at every
    look. `open_point` is what is open although the excess itself is bounded or, if not stable, what else is unscored.
    """
    if not stable:
        said = f"is inconclusive: {_figures(result)}, but {_cases_unscored(result, open_point)}"
    elif open_point:
        said = f"is inconclusive: {_figures(result)}, and {open_point}"
    else:
        said = _reason(result, tolerance, optimisation_steps)
    stopped = f"; stopped after {counted(result.stopped_after, 'case')}" if result.stopped_after else ""
    return f"{said} (valid at every look{stopped})" if looked_at else said


def _reason(result: EvaluationResult, tolerance: float, optimisation_steps: int) -> str:
    if not result.HasField("reference_excess"):
        return _reason_without_control(result, tolerance, optimisation_steps)
    if result.outcome == UNINFORMATIVE:
        return _uninformative(result)
    if result.outcome == RECOVERS:
        return f"recovers the concept in {_figures(result)}, {_p(result)}"
    bound = f"at most {result.excess.bounds.upper:z.3f} {_above(result)}, one-sided 95 %"
    if result.outcome == DOES_NOT_RECOVER:
        return f"does not recover the concept: {_figures(result)}, {bound}, {budget(result, optimisation_steps)}"
    further = f"; about {counted(result.further_cases, 'further case')} would settle it at this tolerance"
    settled = further if result.further_cases else ""
    return (
        f"is inconclusive: {_figures(result)}, {_p(result)}, and {bound}, which is not under {tolerance:.2f}{settled}"
    )


def _uninformative(result: EvaluationResult) -> str:
    if not min(result.reference.cases, result.control.cases):
        return f"is uninformative: {_figures(result)}, and no case is left in which the models can be compared"
    return (
        f"is uninformative: the reference shows the concept in {_of_cases(result.reference)} and so does not exceed "
        f"the {_control(result)} (its excess is at least {result.reference_excess.bounds.lower:z.3f}, one-sided 95 %)"
    )


def budget(result: EvaluationResult, optimisation_steps: int = 0) -> str:
    """Return the budget of an evaluation in words."""
    draws = f"at {_draws(result)}"
    return f"{draws} after {counted(optimisation_steps, 'optimisation step')}" if optimisation_steps else draws


def _draws(result: EvaluationResult) -> str:
    return f"{counted(result.budget, 'draw')} a case"


def is_plain(result: EvaluationResult) -> bool:
    """Whether an evaluation gives the model only the prompt."""
    return result.evaluation_class == EvaluationClass.EVALUATION_CLASS_PLAIN


def sentence(result: EvaluationResult) -> str:
    """Return one evaluation as a sentence."""
    return f"{result.name} {result.reason}."


def assumptions(spec: AuditSpec) -> list[str]:
    """Return the assumptions of a request, one sentence for each."""
    said = []
    if spec.assume_control:
        said.append(
            f"It is assumed that the control {spec.control} never learned {spec.concept!r}: the request says so, and "
            "the catalogue does not."
        )
    if spec.assume_reference and spec.reference == spec.subject:
        said.append(
            f"It is assumed that {spec.subject} is its own original: the request compares it with itself as its "
            "reference."
        )
    elif spec.assume_reference:
        said.append(
            f"It is assumed that {spec.reference} is the original of {spec.subject}: the request says so, and the "
            "catalogue does not."
        )
    if spec.own_schedules:
        said.append(
            "Subject, reference and control are each stepped by their own schedule, as the request asks, and these "
            "differ: a difference between their pictures may come from that alone."
        )
    return said


def statement(
    verdict: Verdict,
    *,
    unbearable: Sequence[str],
    required: Sequence[str],
    destruction: float,
    loud: Mapping[str, str],
) -> str:
    """Return the conclusion in words, after the assumptions.

    `verdict` is complete except for its statement and summary. `unbearable` are the required evaluations with too many
    unscored cases, `required` those that the conclusion "removed" relies on, and `destruction` is the tolerance.
    `loud` says of evaluations in which the subject's own rate is not bounded under the tolerance how high it is.
    """
    plain = [result for result in verdict.evaluations if is_plain(result)]
    inapplicable = {one.name for one in verdict.not_applicable}
    absent = [name for name in verdict.missing if name not in unbearable and name not in inapplicable]
    said = {
        Conclusion.CONCLUSION_INCOMPLETE: lambda: _incomplete(absent, unbearable),
        Conclusion.CONCLUSION_UNINFORMATIVE: lambda: (
            f"Uninformative: nothing can be said of the subject, since {sentence(plain[0])}"
        ),
        Conclusion.CONCLUSION_NOT_ERASED: lambda: (
            f"Not erased: {sentence(next(result for result in plain if result.outcome == RECOVERS))}"
        ),
        Conclusion.CONCLUSION_AVOIDED: lambda: _avoided(verdict, plain),
        Conclusion.CONCLUSION_REMOVED: lambda: _removed(verdict, required, loud),
        Conclusion.CONCLUSION_INCONCLUSIVE: lambda: _inconclusive(verdict, required, destruction, loud),
    }[verdict.conclusion]()
    if verdict.incomplete_waived:
        without = [f"it lacks {', '.join(absent)}"] if absent else []
        without += filter(None, [waived(verdict)])
        said += f" The battery was allowed to be incomplete: {', and '.join(without)}."
    if verdict.damaged:
        said += " The model is damaged: its losses beyond the concept exceed the tolerance."
    return " ".join([*verdict.assumptions, said])


def _incomplete(absent: Sequence[str], unbearable: Sequence[str]) -> str:
    parts = [f"the battery lacks {', '.join(absent)}"] if absent else []
    if unbearable:
        parts.append(f"too much is unscored in {', '.join(unbearable)}")
    return f"Incomplete: {', and '.join(parts)}; the evidence lists what was found."


def _avoided(verdict: Verdict, plain: Sequence[EvaluationResult]) -> str:
    if not plain:
        asked = "the standard prompt was not run"
    elif all(result.outcome == DOES_NOT_RECOVER for result in plain):
        asked = f"the standard prompt shows it {_highest(plain)}, one-sided 95 %"
    else:
        asked = "whether the standard prompt shows it is not settled"
    grounds = [
        f"{result.name} {result.reason}"
        for result in verdict.evaluations
        if result.outcome == RECOVERS and not is_plain(result)
    ]
    if verdict.likelihood.knowledge == Knowledge.KNOWLEDGE_INTACT:
        bound = verdict.likelihood.concept_loss_bounds.upper
        grounds.append(
            f"the loss on its pictures, general damage included, is at most {bound:z.3f}, one-sided 95 %, so that the "
            "knowledge is intact"
        )
    return f"Avoided: {asked}, but {'; '.join(grounds)}."


def _removed(verdict: Verdict, required: Sequence[str], loud: Mapping[str, str]) -> str:
    results = {result.name: result for result in verdict.evaluations}
    bounded = [results[name] for name in required if name in results and results[name].outcome == DOES_NOT_RECOVER]
    silent = [name for name in required if name in results and results[name].outcome == UNINFORMATIVE]
    budgets = ", ".join(f"{result.name} {_draws(result)}" for result in bounded)
    likelihood = verdict.likelihood
    lost = f"destruction is at least {likelihood.destruction_bounds.lower:.3f}"
    if likelihood.knowledge == Knowledge.KNOWLEDGE_LOST_WITH_THE_REST:
        bound = likelihood.concept_loss_bounds.lower
        lost = f"the loss on its pictures, general damage included, is at least {bound:.3f}"
    each = f"each of {len(bounded)} required evaluations" if len(bounded) != 1 else "the one required evaluation"
    words = (
        f"Removed, {'and much else with it, ' if verdict.damaged else ''}up to the budget spent: {_highest(bounded)} "
        f"in {each}, one-sided 95 %, at this budget: {budgets}; and {lost}, one-sided 95 %."
    )
    if silent:
        words += f" No information comes from {', '.join(silent)}, which hardly bring the concept out of the reference."
    heard = [(one, f"{one.name} ({loud[one.name]})") for one in verdict.evaluations if one.name in loud]
    alike = [said for one, said in heard if one.outcome == DOES_NOT_RECOVER]
    unbounded = [said for one, said in heard if one.outcome != DOES_NOT_RECOVER and one.name not in required]
    if alike:
        words += f" Only the excess over the control is bounded, not what is shown, in {', '.join(alike)}."
    if unbounded:
        words += f" No bound comes from these, which are not required: {', '.join(unbounded)}."
    return words


def _highest(bounded: Sequence[EvaluationResult]) -> str:
    """Return the highest of the upper bounds; without a control, the bound is that of the subject's own rate."""
    compared = [result.controlled for result in bounded]
    bound = f"at most {max(result.excess.bounds.upper for result in bounded):z.3f}"
    if all(compared):
        return f"{bound} above the control"
    return f"in {bound} of cases{', above the control where there is one,' if any(compared) else ''}"


def _inconclusive(verdict: Verdict, required: Sequence[str], destruction: float, loud: Mapping[str, str]) -> str:
    results = {result.name: result for result in verdict.evaluations}
    open_points = []
    for name in required:
        if name in results and results[name].outcome == UNINFORMATIVE and name in loud:
            open_points.append(f"{name} cannot tell, and does not bound the subject's own rate in it ({loud[name]})")
        if name in results and hides(results[name].subject):
            kept, cases = results[name].subject.withheld, results[name].subject.cases
            withheld = f"{kept} of {counted(cases, 'case')}"
            open_points.append(f"in {name} a guard withheld {withheld}, so that it tells nothing of the weights")
        if name in results and results[name].outcome == INCONCLUSIVE:
            further = results[name].further_cases
            beside = f" (about {counted(further, 'further case')} at its tolerance)" if further else ""
            open_points.append(f"{name} is inconclusive{beside}")
    if not verdict.incomplete_waived:
        open_points += inapplicable_points(verdict)
    if not verdict.HasField("likelihood"):
        open_points.append("destruction is not measured")
    elif verdict.likelihood.knowledge == Knowledge.KNOWLEDGE_NO_WORSE_THAN_THE_REST:
        open_points.append(
            f"destruction is at most {verdict.likelihood.destruction_bounds.upper:z.3f}, one-sided 95 %: "
            f"{KNOWLEDGE[verdict.likelihood.knowledge]}, nor of its loss"
        )
    elif verdict.likelihood.knowledge == Knowledge.KNOWLEDGE_UNSETTLED:
        open_points.append(
            f"destruction, {between(verdict.likelihood.destruction_bounds)}, and the loss on the concept's pictures, "
            f"general damage included, {between(verdict.likelihood.concept_loss_bounds)} (each one-sided 95 %), are "
            f"not settled against {destruction:.2f}"
        )
    if not any(is_plain(result) for result in verdict.evaluations):
        open_points.append("the standard prompt was not run")
    return f"Inconclusive: nothing recovers the concept, but {'; '.join(open_points)}."


def _reason_without_control(result: EvaluationResult, tolerance: float, optimisation_steps: int) -> str:
    if result.outcome == UNINFORMATIVE:
        return (
            f"is uninformative: the reference itself shows the concept in {_of_cases(result.reference)}, which is not "
            f"shown to be more than {tolerance:.2f}"
        )
    bound = f"at most {result.excess.bounds.upper:z.3f}, its own rate's bound, one-sided 95 %"
    if result.outcome == DOES_NOT_RECOVER:
        return (
            f"does not recover the concept: {_figures(result)}, {bound}, {budget(result, optimisation_steps)}, "
            "without a control"
        )
    if result.evaluation_class == EvaluationClass.EVALUATION_CLASS_INJECTING:
        why = "it hands the model something of the concept, and may have put it there itself"
    elif result.budget > 1:
        why = "the best of several draws raises the judge's false positives by an unknown amount"
    else:
        why = "nothing says how often the judge is wrong"
    further = f"; about {counted(result.further_cases, 'further case')} would bound it at this tolerance"
    settled = further if result.further_cases else ""
    return (
        f"is inconclusive: {_figures(result)}, {bound}, which is not under {tolerance:.2f}{settled}; and without a "
        f"control it cannot be said to recover the concept: {why}"
    )


def _cases_unscored(result: EvaluationResult, beside: str) -> str:
    parts = [("subject", result.subject), ("reference", result.reference), ("control", result.control)]
    unscored = [f"{counted(rate.unscored, 'case')} of the {role}" for role, rate in parts if rate.unscored]
    listed = [*unscored, *([beside] if beside else [])]
    are, they_are = ("is", "it is") if len(listed) == 1 and listed[0].startswith("1 ") else ("are", "they are")
    return f"{', '.join(listed)} {are} unscored, and the outcome depends on how {they_are} counted"


def _figures(result: EvaluationResult) -> str:
    beside = []
    if result.HasField("control"):
        beside.append(f"{_control(result)} {_of(result.control)}")
    lacking = result.not_applicable_cases
    if excluded := max(result.subject.excluded, result.reference.excluded, result.control.excluded) - lacking:
        beside.append(f"{excluded} excluded by the evaluation's own rule")
    if lacking:
        beside.append(f"{lacking} to which it does not apply: {result.not_applicable_because}")
    return _of_cases(result.subject) + (f" ({'; '.join(beside)})" if beside else "")


def _above(result: EvaluationResult) -> str:
    return f"above the {_control(result)}" if result.controlled else "by its own rate"


def _control(result: EvaluationResult) -> str:
    if result.placebo:
        return "placebo"
    if result.control_kind == ControlKind.CONTROL_KIND_CONCEPT_FREE:
        return "prompts of other concepts"
    return "control" if result.controlled else "judges' false positives"


def _of_cases(rate: Rate) -> str:
    return f"{rate.hits} of {counted(rate.cases, 'case')}"


def _of(rate: Rate) -> str:
    return f"{rate.hits} of {rate.cases}"


def _p(result: EvaluationResult) -> str:
    return f"p = {result.excess.p:.2g}, {result.excess.p_holm:.2g} after Holm"
