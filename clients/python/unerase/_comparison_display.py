"""How the command shows comparisons and gates on a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unerase._counting import count_of
from unerase._display import enum_name
from unerase._visible import isolated
from unerase.v1.comparisons_pb2 import (
    AuditComparison,
    CampaignComparison,
    CellComparison,
    Change,
    EvaluationComparison,
    Incomparable,
)
from unerase.v1.gates_pb2 import GateOutcome, GateResult
from unerase.v1.verdicts_pb2 import Conclusion

MOST_FINDINGS = 50
_CHANGE_COLOURS: dict[int, str] = {Change.CHANGE_BETTER: "green", Change.CHANGE_WORSE: "red"}
_GATE_COLOURS: dict[int, str] = {GateOutcome.GATE_OUTCOME_PASS: "green", GateOutcome.GATE_OUTCOME_FAIL: "red"}


def show_gate(console: Console, result: GateResult) -> None:
    """Print what a gate says, and the cells and clauses that decided it."""
    said = enum_name(GateOutcome, result.outcome, "GATE_OUTCOME_")
    console.print()
    console.print(_coloured(f"gate: {said}", _GATE_COLOURS.get(result.outcome, "yellow")))
    console.print(_text(result.statement))
    for finding in result.findings[:MOST_FINDINGS]:
        outcome = enum_name(GateOutcome, finding.outcome, "GATE_OUTCOME_")
        what = f"{finding.clause} by {finding.evaluation}" if finding.evaluation else finding.clause
        line = f"{outcome}: {finding.subject} x {finding.concept}: {what}: {finding.description}"
        console.print(_text(line), soft_wrap=True)
    if len(result.findings) > MOST_FINDINGS:
        console.print(Text(f"and {len(result.findings) - MOST_FINDINGS} more; --json has them all"))


def show_audits_compared(console: Console, found: AuditComparison) -> None:
    """Print what changed from one audit to another."""
    console.print(_coloured(_heading(found), _CHANGE_COLOURS.get(found.change, "")))
    console.print(_text(found.statement))
    for kind, differing in (("differs", found.incomparable), ("differs, and is only noted", found.noted)):
        for each in differing:
            console.print(_text(f"{kind}: {_differing(each)}"), soft_wrap=True)
    if found.evaluations:
        console.print(_evaluations(found.evaluations))
    for figure in found.figures:
        interval = figure.difference.interval
        console.print(
            _text(
                f"{figure.figure}: {figure.first:.2f} then {figure.second:.2f}, "
                f"difference {figure.difference.value:+.2f} [{interval.lower:+.2f}, {interval.upper:+.2f}]"
            )
        )
    for which, names in (("first", found.only_in_first), ("second", found.only_in_second)):
        if names:
            console.print(_text(f"only in the {which} audit: {', '.join(names)}"))


def show_campaigns_compared(
    console: Console, whole: CampaignComparison, cells: Iterable[CellComparison], *, everything: bool
) -> None:
    """Print what changed from one campaign to another, cell by cell; the unchanged ones only with `everything`."""
    console.print(_text(whole.statement))
    for cell in cells:
        why = cell.problem or "; ".join(map(_differing, cell.audits.incomparable))
        if why:
            console.print(_text(f"{cell.subject} x {cell.concept}: not compared: {why}"), soft_wrap=True)
        elif everything or cell.replaced or cell.audits.change in (Change.CHANGE_BETTER, Change.CHANGE_WORSE):
            _show_cell(console, cell)
    for which, names in (("first", whole.only_in_first), ("second", whole.only_in_second)):
        for name in names:
            console.print(_text(f"{name}: only in the {which} campaign"), soft_wrap=True)


def _show_cell(console: Console, cell: CellComparison) -> None:
    change = enum_name(Change, cell.audits.change, "CHANGE_")
    replaced = ", other weights" if cell.replaced else ""
    line = f"{cell.subject} x {cell.concept}: {change}{replaced}: {_conclusions(cell.audits)}"
    console.print(_coloured(line, _CHANGE_COLOURS.get(cell.audits.change, "")), soft_wrap=True)
    for each in cell.audits.evaluations:
        if each.change in (Change.CHANGE_BETTER, Change.CHANGE_WORSE):
            p = each.p_campaign if each.HasField("p_campaign") else each.p_holm
            console.print(
                _text(
                    f"  {each.title or each.evaluation}: only before in {each.only_first} of "
                    f"{count_of(each.cases, 'case')}, only now in {each.only_second}, {_difference(each)}, p {p:.2g}"
                ),
                soft_wrap=True,
            )


def _heading(found: AuditComparison) -> str:
    models = found.first_subject
    if found.second_subject != found.first_subject:
        models = f"{found.first_subject}, then {found.second_subject}"
    change = "not comparable" if found.incomparable else enum_name(Change, found.change, "CHANGE_")
    return f"{models}: {found.concept}: {change}: {_conclusions(found)}"


def _differing(each: Incomparable) -> str:
    return f"{each.what}: {each.first} and {each.second}"


def _conclusions(found: AuditComparison) -> str:
    first, second = (
        enum_name(Conclusion, each, "CONCLUSION_") for each in (found.first_conclusion, found.second_conclusion)
    )
    return first if first == second else f"{first}, now {second}"


def _evaluations(evaluations: Iterable[EvaluationComparison]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("evaluation")
    for column in ("cases", "only first", "only second", "difference, 95 %", "p (Holm)"):
        table.add_column(column, justify="right")
    table.add_column("change")
    for each in evaluations:
        if each.not_applicable:
            table.add_row(isolated(each.title or each.evaluation), "-", "-", "-", "-", "-", "not applicable")
            continue
        if each.incomparable:
            why = ", ".join(differing.what for differing in each.incomparable)
            table.add_row(isolated(each.title or each.evaluation), "-", "-", "-", "-", "-", isolated(f"differs: {why}"))
            continue
        table.add_row(
            isolated(each.title or each.evaluation),
            str(each.cases),
            str(each.only_first),
            str(each.only_second),
            _difference(each),
            f"{each.p_holm:.2g}",
            Text(enum_name(Change, each.change, "CHANGE_"), style=_CHANGE_COLOURS.get(each.change, "")),
        )
    return table


def _difference(each: EvaluationComparison) -> str:
    interval = each.difference.interval
    return f"{each.difference.value:+.2f} [{interval.lower:+.2f}, {interval.upper:+.2f}]"


def _text(text: str) -> Text:
    return Text(isolated(text))


def _coloured(text: str, colour: str) -> Text:
    return Text(isolated(text), style=f"bold {colour}".strip())
