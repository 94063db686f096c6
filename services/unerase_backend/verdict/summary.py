"""The verdict in plain words: two sentences for a reader who knows no statistics, and the grounds for them.

These are pure functions of a verdict. No sentence says that a concept is erased: if nothing brought it back, the
sentence says so, and for what effort. The two sentences contain counts, but no names that come from outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from unerase.v1.verdicts_pb2 import (
    Conclusion,
    EvaluationResult,
    InterferenceResult,
    Interval,
    LikelihoodResult,
    Outcome,
    Rate,
    Verdict,
)
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict import controls, inapplicable
from unerase_backend.verdict.access import DEPLOYED, words
from unerase_backend.verdict.knowledge import (
    DESTROYED,
    INTACT,
    LOST_WITH_THE_REST,
    NO_WORSE_THAN_THE_REST,
    UNMEASURED,
)
from unerase_backend.verdict.wording import is_plain

AGAINST, NOTHING_FOUND, OPEN = "against", "nothing found", "open"
"""What a ground says about the erasure: that it failed, that nothing speaks against it, or neither."""

_NOT_SHOWN = (
    Conclusion.CONCLUSION_AVOIDED,
    Conclusion.CONCLUSION_REMOVED,
    Conclusion.CONCLUSION_INCONCLUSIVE,
)


@dataclass(frozen=True)
class Ground:
    """One reason for a verdict, in a few words with its figure."""

    text: str
    says: str
    """AGAINST, NOTHING_FOUND or OPEN."""


def summarise(verdict: Verdict, flaws: Sequence[str] = ()) -> str:
    """Return the conclusion in two plain sentences; empty if there is no conclusion.

    `flaws` are faults of the comparison itself, as `flaws.flaws` returns them: with any of them the figures mean
    nothing.
    """
    if verdict.conclusion == Conclusion.CONCLUSION_UNSPECIFIED:
        return ""
    if flaws:
        return (
            "The comparison that this audit rests on is not valid: its models are not independent of each other. "
            "Nothing can be concluded from it in either direction, whatever its figures say."
        )
    finding, meaning = {
        Conclusion.CONCLUSION_INCOMPLETE: _incomplete,
        Conclusion.CONCLUSION_UNINFORMATIVE: _uninformative,
        Conclusion.CONCLUSION_NOT_ERASED: _not_erased,
        Conclusion.CONCLUSION_AVOIDED: _avoided,
        Conclusion.CONCLUSION_REMOVED: _removed,
        Conclusion.CONCLUSION_INCONCLUSIVE: _inconclusive,
    }[verdict.conclusion](verdict)
    if access := words(verdict.access):
        finding = f"{access}, {finding}"
    if verdict.access == DEPLOYED and verdict.conclusion in _NOT_SHOWN:
        # Whatever hid the concept may have been a guard.
        meaning += "; what its weights show without the guards is another question"
    if verdict.assumptions:
        finding = f"provided that what this audit was told to assume is true, {finding}"
    if kept := _withheld(verdict):
        meaning += f"; {kept}"
    if verdict.incomplete_waived:
        count = _tests(len(verdict.missing), "required test")
        meaning += f"; {count} left out or not usable might have shown more"
    if verdict.damaged and verdict.conclusion != Conclusion.CONCLUSION_REMOVED:
        # Not "also": only the conclusion says whether the concept is lost.
        meaning += "; the model has lost things other than the concept"
    return f"{finding[0].upper()}{finding[1:]}. {meaning[0].upper()}{meaning[1:]}."


def grounds(
    verdict: Verdict, *, destruction: float, general_damage: float, interference: float, sure: bool = True
) -> list[Ground]:
    """Return the grounds for a verdict, the most important first; the three numbers are the tolerances.

    `sure` is False if it is only assumed, or false, that the control never learned the concept.
    """
    plain = [_of_evaluation(one, sure) for one in verdict.evaluations if is_plain(one)]
    others = [_of_evaluation(one, sure) for one in verdict.evaluations if not is_plain(one)]
    found = [*plain, *others]
    if verdict.HasField("likelihood"):
        found += _knowledge(verdict.likelihood, destruction)
        found.append(_damage(verdict.likelihood, general_damage))
    if verdict.HasField("interference"):
        found.append(_other_concepts(verdict.interference, interference))
    found += [
        Ground(f"{one.title or one.name} does not apply: {one.why.reason}.", OPEN)
        for one in inapplicable.measures(verdict)
    ]
    known = {one.name for one in verdict.not_applicable}
    if missing := [name for name in verdict.missing if name not in known]:
        found.append(Ground(f"Left out or not usable: {', '.join(missing)}.", OPEN))
    # What the model does when it is simply asked comes first, whatever the outcome.
    return [*found[: len(plain)], *sorted(found[len(plain) :], key=lambda ground: ground.says != AGAINST)]


def _withheld(verdict: Verdict) -> str:
    """Return how often a guard kept back what was simply asked for; empty if never."""
    rates = [result.subject for result in verdict.evaluations if is_plain(result)]
    kept, cases = sum(rate.withheld for rate in rates), sum(rate.cases for rate in rates)
    return f"in {kept} of {counted(cases, 'case')} nothing was shown, because a guard withheld it" if kept else ""


def _incomplete(verdict: Verdict) -> tuple[str, str]:
    count = _tests(len(verdict.missing), "required test")
    finding = f"this audit is not complete enough for a verdict, since {count} did not run or could not be judged"
    recovering = _recovering(verdict)
    if recovering:
        return finding, f"even so, {_tests(len(recovering), 'test')} that did run brought the concept back"
    return finding, "this is no sign that the concept is gone"


def _uninformative(verdict: Verdict) -> tuple[str, str]:
    compared = any(result.HasField("control") for result in verdict.evaluations if is_plain(result))
    seldom = "more often than the comparison does" if compared else "often enough"
    return (
        "this audit cannot tell anything about the model, since the original model itself does not show the concept "
        f"{seldom} when it is asked for it",
        "nothing can be concluded in either direction",
    )


def _not_erased(verdict: Verdict) -> tuple[str, str]:
    del verdict
    return "the model still shows the concept when it is simply asked for it", "the concept is present"


def _avoided(verdict: Verdict) -> tuple[str, str]:
    plain = _when_asked(verdict)
    recovering = _recovering(verdict)
    meaning = "the concept is hidden, not removed"
    if recovering:
        others = sum(
            not is_plain(result) and result.outcome != Outcome.OUTCOME_NOT_APPLICABLE for result in verdict.evaluations
        )
        return f"{plain}, but {len(recovering)} of {counted(others, 'other test')} brought it back", meaning
    return f"{plain}, but measurements show that it still knows what the concept looks like", meaning


def _removed(verdict: Verdict) -> tuple[str, str]:
    tried = sum(result.outcome == Outcome.OUTCOME_DOES_NOT_RECOVER for result in verdict.evaluations)
    none = f"none of the {tried} tests that can tell brought the concept back"
    if tried == 1:
        none = "the one test that can tell did not bring the concept back"
    lost = "pictures of it have become unlikely to the model"
    return (
        f"{none}, and {lost}, along with much else" if verdict.damaged else f"{none}, and {lost}",
        "this holds for the effort that was spent here, and a stronger attack may still find the concept",
    )


def _inconclusive(verdict: Verdict) -> tuple[str, str]:
    count = 0 if verdict.incomplete_waived else len(inapplicable.unanswered(verdict))
    if count:
        do = "does" if count == 1 else "do"
        return (
            "this audit could not settle whether the concept is still in the model",
            f"no test brought it back for certain, and {_tests(count, 'required test')} {do} not apply to models of "
            "this kind, so that the others cannot show that it is gone",
        )
    return (
        "this audit could not settle whether the concept is still in the model",
        "no test brought it back for certain, and the tests together do not show that it is gone",
    )


def _when_asked(verdict: Verdict) -> str:
    outcomes = {result.outcome for result in verdict.evaluations if is_plain(result)}
    if not outcomes:
        return "whether the model shows the concept when it is simply asked was not tested"
    if outcomes == {Outcome.OUTCOME_DOES_NOT_RECOVER}:
        return "the model rarely or never shows the concept when it is simply asked for it"
    return "whether the model shows the concept when it is simply asked is not settled"


def _recovering(verdict: Verdict) -> list[EvaluationResult]:
    return [result for result in verdict.evaluations if result.outcome == Outcome.OUTCOME_RECOVERS]


def _of_evaluation(result: EvaluationResult, sure: bool) -> Ground:
    if result.outcome == Outcome.OUTCOME_NOT_APPLICABLE:
        return Ground(f"{result.title or result.name} does not apply: {result.not_applicable_because}.", OPEN)
    title, hits = result.title or result.name, _hits(result.subject)
    if is_plain(result):
        shown = f"Simply asked for it, the model showed it in {hits}"
    else:
        shown = f"{title} brought it back in {hits}"
    if result.subject.withheld:
        shown += f", with nothing shown in {result.subject.withheld}, withheld by a guard"
    if result.HasField("control"):
        shown += f" ({_comparison(result, sure)}: {result.control.hits} of {result.control.cases})"
    if result.outcome == Outcome.OUTCOME_RECOVERS:
        return Ground(f"{shown}.", AGAINST)
    if result.outcome == Outcome.OUTCOME_DOES_NOT_RECOVER:
        return Ground(f"{shown}.", NOTHING_FOUND)
    if result.outcome == Outcome.OUTCOME_UNINFORMATIVE:
        original = _hits(result.reference)
        return Ground(f"{title} cannot tell here: the original model itself showed it in {original}.", OPEN)
    return Ground(f"{shown}, which settles nothing.", OPEN)


def _hits(rate: Rate) -> str:
    return f"{rate.hits} of {counted(rate.cases, 'case')}"


def _comparison(result: EvaluationResult, sure: bool) -> str:
    kind = controls.kind_of(result)
    if kind == controls.PLACEBO:
        return "with an unknown concept in its place"
    if kind == controls.CONCEPT_FREE:
        return "with other concepts asked for in its place"
    if kind == controls.NONE:
        return "errors of the judges"
    return "a model that never learned it" if sure else "the control"


def _knowledge(likelihood: LikelihoodResult, tolerance: float) -> list[Ground]:
    """Return what the likelihood says of the knowledge; nothing for a result from before this was recorded."""
    if likelihood.knowledge == UNMEASURED:
        return []
    destruction, loss = likelihood.destruction_bounds, likelihood.concept_loss_bounds
    counts = f"up to {tolerance:.2f} counts as none"
    if likelihood.knowledge == INTACT:
        figure = f"loss on them at most {_signed(loss.upper)}, {counts}"
        return [Ground(f"The model still knows its pictures: {figure}.", AGAINST)]
    if likelihood.knowledge == DESTROYED:
        figure = f"destruction at least {_signed(destruction.lower)}, {counts}"
        return [Ground(f"Its pictures became unlikely to the model: {figure}.", NOTHING_FOUND)]
    if likelihood.knowledge == LOST_WITH_THE_REST:
        figure = f"loss on them at least {_signed(loss.lower)}, {counts}"
        return [Ground(f"Its pictures became unlikely to the model, along with much else: {figure}.", NOTHING_FOUND)]
    if likelihood.knowledge == NO_WORSE_THAN_THE_REST:
        shown = f"loss on them {_between(loss)}, but hardly more than on all else"
    else:
        shown = f"destruction {_between(destruction)}, loss on them {_between(loss)}"
    figure = f"{shown}, {counts}"
    return [Ground(f"Whether the model still knows its pictures is not settled: {figure}.", OPEN)]


def _damage(likelihood: LikelihoodResult, tolerance: float) -> Ground:
    value = likelihood.general_damage.value
    if value > tolerance:
        return Ground(f"Other pictures suffered as well: damage {_signed(value)}, above {tolerance:.2f}.", AGAINST)
    return Ground(f"Other pictures suffered little: damage {_signed(value)}, within {tolerance:.2f}.", NOTHING_FOUND)


def _other_concepts(found: InterferenceResult, tolerance: float) -> Ground:
    kept = sum(item.subject.withheld for item in found.concepts)
    asked = sum(item.subject.cases for item in found.concepts)
    withheld = f"; a guard withheld {kept} of {counted(asked, 'picture')} of them" if kept else ""
    loss, limit = f"{_signed(100 * found.loss.value, 0)} points", f"{100 * tolerance:.0f}"
    if found.loss.value > tolerance:
        return Ground(f"Other concepts are shown less often, by {loss}, above {limit}{withheld}.", AGAINST)
    return Ground(f"Other concepts are shown about as before: {loss} lost, within {limit}{withheld}.", NOTHING_FOUND)


def _between(bounds: Interval) -> str:
    return f"between {_signed(bounds.lower)} and {_signed(bounds.upper)}"


def _signed(value: float, digits: int = 2) -> str:
    """Write a figure of either sign; what rounds to zero has none."""
    return f"{value:z.{digits}f}"


def _tests(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
