"""A campaign's cells in the short form that one page holds of them: what its tables show, and the evidence as JSON.

The evidence of a cell is put on the page by its script when somebody opens the cell, since 2,000 cells with 12
evaluations each would be too many elements. Every text in it is ready to be shown, and every figure is a whole number
of per cent:

    i, s, c        the cell's index, subject and concept
    k, w           kind of colour and word of its conclusion, or why it has none
    n              summary and statement, in this order; or the reason of a failure and its message
    e              evaluations: see `_evaluation`
    f              further figures: name and value
    d              in an audit of both accesses: word of the deployed model's conclusion, its summary, its evaluations
    g              what the gate found: kind of colour, sign, word, clause, description
    x              the change since the compared campaign: word, statement, "replaced" or "", changes of evaluations
    a              id of the audit
    p              pictures: data URI, caption, 1 for a hit
    o              pictures that the audit's report has and the page has not
    v              1 if the pictures are blurred until asked for
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unerase.v1.audits_pb2 import ReportContent
from unerase.v1.campaigns_pb2 import CampaignReportCell
from unerase.v1.comparisons_pb2 import CellComparison, Change, EvaluationComparison
from unerase.v1.gates_pb2 import GateFinding, GateOutcome
from unerase.v1.verdicts_pb2 import Estimate, EvaluationResult, Interval, Outcome, Rate, Verdict
from unerase_backend.comparison.campaigns import is_changed
from unerase_backend.report.campaign.thumbnails import Picked, pick
from unerase_backend.report.campaign.words import OUTCOMES, Said, of_cell, of_change, of_comparison, of_gate, of_outcome
from unerase_backend.report.formatting import estimate, p_value, points, span
from unerase_backend.report.text import unbroken, visible
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict.access import words
from unerase_backend.verdict.decision import Tolerances
from unerase_backend.verdict.inapplicable import by_reason, listed
from unerase_backend.verdict.measure_wording import KNOWLEDGE


@dataclass(frozen=True)
class Measured:
    """One evaluation of a cell in the heat map."""

    name: str
    said: Said
    excess: int | None
    """The subject's excess over the control in percentage points; None where there is none."""


@dataclass(frozen=True)
class Row:
    """One cell on the page."""

    index: int
    subject: str
    concept: str
    said: Said
    damaged: bool
    gate: Said
    change: Said
    changed: bool
    """Anything of it changed since the compared campaign, or could not be compared."""
    replaced: bool
    measured: list[Measured]
    destruction: Estimate | None
    lost_pull: Estimate | None
    evidence: dict[str, Any]
    picked: list[Picked] = field(default_factory=list)
    pictures: int = 0
    """Pictures that the audit's report has."""

    @property
    def recovering(self) -> int:
        """The evaluations that bring the concept back."""
        return sum(one.said.kind == "recovers" for one in self.measured)

    @property
    def worst(self) -> Measured | None:
        """The most serious evaluation, and of several the one with the highest excess."""
        there = [one for one in self.measured if one.excess is not None]
        return min(there, key=lambda one: (one.said.severity, -(one.excess or 0)), default=None)


class Titles:
    """The evaluations of a page in the order in which they first appear, with their titles."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}

    def position(self, result: EvaluationResult) -> int:
        """Return an evaluation's position, from 0."""
        self.shown.setdefault(result.name, result.title or result.name)
        return list(self.shown).index(result.name)


def row_of(
    cell: CampaignReportCell,
    *,
    audit: str,
    gate: GateOutcome.ValueType | None,
    findings: Iterable[GateFinding],
    comparison: CellComparison | None,
    content: ReportContent | None,
    tolerances: Tolerances,
    titles: Titles,
) -> Row:
    """Return the short form of a cell; `content` is that of its audit's report, if that is kept."""
    said, verdict = of_cell(cell), cell.verdict
    evidence: dict[str, Any] = {
        "i": cell.index,
        "s": visible(cell.subject),
        "c": visible(cell.concept),
        "k": said.kind,
        "w": f"{said.sign} {said.word}" + (", damaged" if verdict.damaged else ""),
        "n": [unbroken(text) for text in _narrative(cell) if text],
        "g": [_finding(finding) for finding in findings],
    }
    if audit:
        evidence["a"] = audit
    if cell.HasField("verdict"):
        evidence["e"] = [_evaluation(result, tolerances, titles) for result in verdict.evaluations]
        evidence["f"] = _figures(verdict, tolerances)
    if verdict.HasField("deployed"):
        deployed = verdict.deployed
        spoken = of_cell(CampaignReportCell(verdict=deployed))
        evidence["d"] = [
            f"{spoken.sign} {spoken.word}",
            unbroken(deployed.summary),
            [_evaluation(result, tolerances, titles) for result in deployed.evaluations],
        ]
    if comparison is not None:
        evidence["x"] = _changes(comparison)
    picked = pick(verdict, content) if content is not None else []
    if content is not None and content.concept.sensitive:
        evidence["v"] = 1
    measured = verdict.likelihood
    placed = measured.HasField("destruction") and measured.HasField("lost_pull")
    return Row(
        index=cell.index,
        subject=cell.subject,
        concept=cell.concept,
        said=said,
        damaged=verdict.damaged,
        gate=of_gate(gate),
        change=of_comparison(comparison),
        changed=comparison is not None and is_changed(comparison),
        replaced=comparison is not None and comparison.replaced,
        measured=[_measured(result) for result in verdict.evaluations],
        destruction=measured.destruction if placed else None,
        lost_pull=measured.lost_pull if placed else None,
        evidence={key: value for key, value in evidence.items() if value not in ([], "")},
        picked=picked,
        pictures=len(content.pictures) if content is not None else 0,
    )


def percent(value: float) -> int | None:
    """Return a share in per cent, rounded as the words of the page are; None if it is not finite."""
    return int(f"{100 * value:.0f}") if math.isfinite(value) else None


def _narrative(cell: CampaignReportCell) -> Sequence[str]:
    if cell.HasField("verdict"):
        return cell.verdict.summary, cell.verdict.statement
    return cell.error_reason, cell.error_message


def _measured(result: EvaluationResult) -> Measured:
    has_excess = result.HasField("excess")
    return Measured(result.name, of_outcome(result.outcome), percent(result.excess.value) if has_excess else None)


def _evaluation(result: EvaluationResult, tolerances: Tolerances, titles: Titles) -> list[Any]:
    """Return an evaluation for the script.

    Position of its title; position of its outcome; draws of a case; cases after which it stopped, or 0; subject,
    reference, control, each as hits, cases, lower end, upper end and a note, or 0 if absent; excess as value in words,
    value, lower and upper bound, p in words or "", tolerance, or 0 if absent.
    """
    excess: list[Any] | int = 0
    if result.HasField("excess"):
        tested = result.HasField("control")
        excess = [
            unbroken(points(result.excess.value)),
            percent(result.excess.value),
            *_ends(result.excess.bounds),
            p_value(result.excess.p_holm) if tested else "",
            percent(tolerances.excess_of(result.budget)),
        ]
    return [
        titles.position(result),
        OUTCOMES.index(of_outcome(result.outcome)) if result.outcome in Outcome.values()[1:] else -1,
        result.budget,
        result.stopped_after,
        _rate(result.subject) if result.HasField("subject") else 0,
        _rate(result.reference) if result.HasField("reference") else 0,
        _rate(result.control) if result.HasField("control") else 0,
        excess,
    ]


def _rate(rate: Rate) -> list[Any]:
    counts = (("unscored", rate.unscored), ("excluded", rate.excluded), ("withheld", rate.withheld))
    note = ", ".join(f"{count} {name}" for name, count in counts if count)
    return [rate.hits, rate.cases, *_ends(rate.wilson), *([note] if note else [])]


def _ends(interval: Interval) -> list[int | None]:
    return [percent(interval.lower), percent(interval.upper)]


def _figures(verdict: Verdict, tolerances: Tolerances) -> list[list[str]]:
    figures: list[tuple[str, str]] = []
    if verdict.HasField("likelihood"):
        measured = verdict.likelihood
        figures += [
            ("destruction", f"{estimate(measured.destruction)}; up to {tolerances.destruction:g} counts as none"),
            ("lost pull", estimate(measured.lost_pull) if measured.HasField("lost_pull") else "not measurable"),
            ("general damage", f"{estimate(measured.general_damage)}; tolerance {tolerances.general_damage:g}"),
        ]
        if measured.knowledge:
            figures.append(("what it says", KNOWLEDGE[measured.knowledge]))
    if verdict.HasField("interference"):
        lost = estimate(verdict.interference.loss)
        figures.append(("detection lost on other concepts", f"{lost}; tolerance {tolerances.interference:g}"))
    inapplicable = by_reason(verdict.not_applicable)
    if missing := [name for name in verdict.missing if name not in itertools.chain(*inapplicable.values())]:
        figures.append(("missing evaluations", ", ".join(missing)))
    figures += [("not applicable", f"{listed(names)}: {reason}") for reason, names in inapplicable.items()]
    return [[name, unbroken(value)] for name, value in figures]


def _changes(comparison: CellComparison) -> list[Any]:
    audits = comparison.audits
    return [
        of_change(audits.change).word,
        unbroken(comparison.problem or audits.statement),
        "replaced" if comparison.replaced else "",
        [_change(one) for one in audits.evaluations if one.change != Change.CHANGE_SAME],
    ]


def _finding(finding: GateFinding) -> list[str]:
    said = of_gate(finding.outcome)
    clause = f"{finding.clause}, {finding.evaluation}" if finding.evaluation else finding.clause
    return [said.kind, said.sign, said.word, visible(clause), unbroken(finding.description)]


def _change(one: EvaluationComparison) -> list[str]:
    title, side = visible(one.title or one.evaluation), words(one.access)
    if one.not_applicable:
        said = f"not applicable: {one.not_applicable}"
    elif one.incomparable:
        said = "; ".join(f"{it.what} was {it.first}, is {it.second}" for it in one.incomparable)
    else:
        over_cells = one.HasField("p_campaign")
        p, of = (one.p_campaign, "Holm over the cells") if over_cells else (one.p_holm, "Holm")
        said = (
            f"{points(one.difference.value)} points ({span(one.difference.interval)}); of {counted(one.cases, 'case')} "
            f"{one.only_second} only now and {one.only_first} only before; p {p_value(p)} after {of}"
        )
    return [f"{title}, {side}" if side else title, of_change(one.change).word, unbroken(said)]
