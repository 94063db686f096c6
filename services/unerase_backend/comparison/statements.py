"""Comparisons in plain words.

No sentence says that two models are the same: where nothing changed, it says within what.
"""

from collections.abc import Callable, Sequence

from unerase.v1.comparisons_pb2 import (
    AuditComparison,
    CampaignComparison,
    Change,
    EvaluationComparison,
    FigureComparison,
)
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict.access import words

CONCLUSIONS = {
    Conclusion.CONCLUSION_INCOMPLETE: "incomplete",
    Conclusion.CONCLUSION_UNINFORMATIVE: "uninformative",
    Conclusion.CONCLUSION_NOT_ERASED: "not erased",
    Conclusion.CONCLUSION_AVOIDED: "avoided, not removed",
    Conclusion.CONCLUSION_REMOVED: "removed, up to the budget that was spent",
    Conclusion.CONCLUSION_INCONCLUSIVE: "inconclusive",
}
"""Each conclusion in a few words."""

_FIGURES = {
    "destruction": "destruction",
    "concept_loss": "the concept's loss",
    "general_damage": "general damage",
    "interference": "the loss on other concepts",
}


def state(comparison: AuditComparison) -> str:
    """Return what two audits say of the change from the first subject to the second."""
    if comparison.incomparable:
        return (
            f"The audits cannot be compared: they differ in {_listed([each.what for each in comparison.incomparable])}."
        )
    sentences = [sentence for part in (_changes, _conclusions, _figures, _left_out) if (sentence := part(comparison))]
    return " ".join(sentences)


def _changes(comparison: AuditComparison) -> str:
    worse, better, same, unsettled = (
        [compared for compared in comparison.evaluations if compared.change == change]
        for change in (Change.CHANGE_WORSE, Change.CHANGE_BETTER, Change.CHANGE_SAME, Change.CHANGE_UNSETTLED)
    )
    compared = len(worse) + len(better) + len(same) + len(unsettled)
    if not compared:
        return "No evaluation of the two audits can be compared."
    now, before = _names(comparison)
    changed = [
        f"{direction} often {than}in {_listed([_figured(each) for each in found])}"
        for direction, found, than in (
            ("more", worse, f"than {before} "),
            ("less", better, "" if worse else f"than {before} "),
        )
        if found
    ]
    if changed:
        said = f"{now} shows {comparison.concept} {' and '.join(changed)}"
        rest = _others(len(same), len(unsettled))
        return f"{said}; of the other evaluations {rest}." if rest else f"{said}."
    if same and not unsettled:
        most = max(max(-each.bounds.lower, each.bounds.upper) for each in same)
        return (
            f"{now} shows {comparison.concept} as often as {before} in "
            f"{'the one evaluation' if compared == 1 else f'all {compared} evaluations'} that can be compared, "
            f"to within {most:.3f} (one-sided 95 %)."
        )
    return (
        f"No evaluation shows a significant change from {before} to {now} in how often {comparison.concept} is shown: "
        f"{_others(len(same), len(unsettled))}."
    )


def _others(same: int, unsettled: int) -> str:
    said = [f"{same} did not change by the tolerance or more"] if same else []
    said += [f"{unsettled} {'is' if unsettled == 1 else 'are'} not settled"] if unsettled else []
    return " and ".join(said)


def _names(comparison: AuditComparison) -> tuple[str, str]:
    first, second = comparison.first_subject, comparison.second_subject
    if first != second:
        return second, first
    if comparison.first_subject_digest != comparison.second_subject_digest:
        return f"{second} as it is now", f"{first} as it was"
    return f"{second} in the second audit", "the same in the first"


def _figured(compared: EvaluationComparison) -> str:
    """Return an evaluation with its figures, as in "Noise-based (only after 9, only before 1 of 24; p 0.021)"."""
    side = f", {words(compared.access)}" if words(compared.access) else ""
    over_cells = compared.HasField("p_campaign")
    p = compared.p_campaign if over_cells else compared.p_holm
    of = "Holm over the cells" if over_cells else "Holm"
    cases = counted(compared.cases, "case")
    return (
        f"{compared.title or compared.evaluation}{side} (of {cases} {compared.only_second} only now and "
        f"{compared.only_first} only before, p {p:.2g} after {of})"
    )


def _conclusions(comparison: AuditComparison) -> str:
    first, second = (CONCLUSIONS.get(each, "") for each in (comparison.first_conclusion, comparison.second_conclusion))
    if not (first and second) or first == second:
        return ""
    return f"The conclusion was {first}, and is now {second}."


def _figures(comparison: AuditComparison) -> str:
    """Return the figures of the measures whose interval excludes 0."""
    moved = [
        figure
        for figure in comparison.figures
        if not figure.difference.interval.lower <= 0 <= figure.difference.interval.upper
    ]
    if not moved:
        return ""
    text = _listed([_moved(figure) for figure in moved])
    return f"{text[0].upper()}{text[1:]}."


def _moved(figure: FigureComparison) -> str:
    change, interval = figure.difference.value, figure.difference.interval
    side = f", {words(figure.access)}," if words(figure.access) else ""
    return (
        f"{_FIGURES[figure.figure]}{side} is {abs(change):.3f} {'higher' if change > 0 else 'lower'} "
        f"({interval.lower:z.3f} to {interval.upper:z.3f})"
    )


def _left_out(comparison: AuditComparison) -> str:
    sentences = []
    prevented = list(dict.fromkeys(each.evaluation for each in comparison.evaluations if each.incomparable))
    if prevented:
        reasons = dict.fromkeys(what.what for each in comparison.evaluations for what in each.incomparable)
        sentences.append(f"Not compared: {_listed(prevented)}, which differ in {_listed(list(reasons))}.")
    without = {each.evaluation: each.not_applicable for each in comparison.evaluations if each.not_applicable}
    for reason in dict.fromkeys(without.values()):
        lacking = [name for name, why in without.items() if why == reason]
        sentences.append(f"Not applicable: {_listed(lacking)}, since {reason}.")
    for place, names in (("first", comparison.only_in_first), ("second", comparison.only_in_second)):
        if names:
            sentences.append(f"Only the {place} audit has {_listed(list(names))}.")
    if comparison.noted:
        sentences.append(f"The audits also differ in {_listed([each.what for each in comparison.noted])}.")
    return " ".join(sentences)


def state_campaigns(compared: CampaignComparison) -> str:
    """Return what two campaigns say of the change from the first to the second."""
    if not compared.compared:
        return "No cell of the two campaigns can be compared."
    counts = [
        f"{count} {said}"
        for count, said in (
            (compared.worse, "worse"),
            (compared.better, "better"),
            (compared.unsettled, "not settled"),
            (compared.same, "unchanged to within the tolerance"),
        )
        if count
    ]
    sentences = [f"Of {counted(compared.compared, 'compared cell')}, {_listed(counts) or 'none has a compared case'}."]
    sentences.append(
        f"In {counted(compared.replaced, 'cell')} the subject was replaced, and "
        f"{counted(compared.conclusions_changed, 'conclusion')} changed."
    )
    if compared.tests:
        sentences.append(
            f"A change is significant among {counted(compared.tests, 'test')} from "
            f"{counted(compared.discordant_needed, 'case')} on that only one of the two shows."
        )
    if compared.without_comparison:
        sentences.append(f"{counted(compared.without_comparison, 'cell')} could not be compared.")
    only = [
        f"{counted(count, 'cell')} only in the {place}"
        for count, place in ((compared.only_in_first_cells, "first"), (compared.only_in_second_cells, "second"))
        if count
    ]
    if only:
        sentences.append(f"There are {' and '.join(only)}.")
    return " ".join(sentences)


def _listed(items: Sequence[str], join: Callable[[Sequence[str]], str] = ", ".join) -> str:
    """Return items as "a, b and c"."""
    return " and ".join([join(items[:-1]), items[-1]]) if len(items) > 1 else join(items)
