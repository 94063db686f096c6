"""How the command shows audits on a terminal."""

from collections.abc import Collection
from datetime import UTC
from types import TracebackType
from typing import Any, Self

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unerase._visible import isolated, visible
from unerase.v1.audits_pb2 import Audit, AuditCost, AuditEvent, AuditState
from unerase.v1.types_pb2 import ControlKind, ModelAccess, ModelRole
from unerase.v1.verdicts_pb2 import Conclusion, Estimate, EvaluationResult, Outcome, Rate, Verdict

CONCLUSION_COLOURS: dict[int, str] = {
    Conclusion.CONCLUSION_NOT_ERASED: "red",
    Conclusion.CONCLUSION_AVOIDED: "red",
    Conclusion.CONCLUSION_REMOVED: "green",
}


class LiveProgress:
    """A progress bar that follows an audit's events; a `hidden` one writes nothing."""

    def __init__(self, console: Console, *, hidden: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} units"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[expected]}", markup=False),
            console=console,
            disable=hidden,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("requesting", total=1, expected="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: AuditEvent) -> None:
        """Show one event."""
        if self._task is None:
            return
        match event.WhichOneof("event"):
            case "state_changed":
                audit = event.state_changed
                self._progress.update(
                    self._task, description=state_name(audit), total=audit.units_total, completed=audit.units_done
                )
                self.expect(audit)
            case "unit_done":
                done = event.unit_done
                self._progress.update(self._task, advance=1, description=_unit(done.evaluation, done.role))
            case "unit_progress":
                at = event.unit_progress
                share = f" step {at.step}/{at.steps}" if at.steps else ""
                self._progress.update(self._task, description=_unit(at.evaluation, at.role) + share)
            case "delayed":
                self._progress.update(self._task, description=visible(f"waiting: {event.delayed.message}"))

    def expect(self, audit: Audit) -> None:
        """Show when the audit is expected to end, if that is known."""
        if self._task is not None:
            known = audit.HasField("estimated_end_time")
            self._progress.update(self._task, expected=f"until {local_time(audit.estimated_end_time)}" if known else "")


def event_line(event: AuditEvent) -> str:
    """Return one event as one line."""
    match event.WhichOneof("event"):
        case "state_changed":
            return f"{event.sequence:>5}  {state_name(event.state_changed)}"
        case "unit_done":
            done = event.unit_done
            if done.skipped:
                return f"{event.sequence:>5}  {done.unit}: not run, because its evaluation's answer was settled"
            unscored = f", {done.unscored} unscored" if done.unscored else ""
            withheld = f", {done.withheld} withheld" if done.withheld else ""
            shown = f"{done.detected} of {done.observations} detected"
            return f"{event.sequence:>5}  {done.unit}: {shown}{unscored}{withheld}"
        case "delayed":
            return f"{event.sequence:>5}  {event.delayed.unit or 'the conclusion'} waits: {event.delayed.message}"
        case _:
            at = event.unit_progress
            return f"{event.sequence:>5}  {at.unit}: step {at.step} of {at.steps}"


def state_name(audit: Audit) -> str:
    """Return the audit's state as a word."""
    return enum_name(AuditState, audit.state, "AUDIT_STATE_")


def enum_name(enum: Any, value: int, prefix: str) -> str:
    """Return an enum value's name for people to read; its number if only a newer backend knows it."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return str(value)
    return name.removeprefix(prefix).lower().replace("_", " ")


def show_cost(console: Console, cost: AuditCost, noun: str = "audit", without: Collection[str] = frozenset()) -> None:
    """Print what an audit or a campaign would take; `without` are the evaluations that do not apply to its models."""
    table = Table(box=None, pad_edge=False)
    table.add_column("evaluation")
    for column in ("units", "pictures", "rows of the network"):
        table.add_column(column, justify="right")
    for each in cost.evaluations:
        if each.evaluation in without:
            table.add_row(each.evaluation, "not applicable", "-", "-")
        else:
            table.add_row(each.evaluation, f"{each.units:,}", f"{each.pictures:,}", f"{each.rows:,}")
    table.add_row("all", f"{cost.units:,}", f"{cost.pictures:,}", f"{cost.rows:,}", style="bold")
    console.print(table)
    console.print(f"{cost.stored_bytes:,} bytes in the database when the {noun} is created")
    if cost.HasField("estimated_duration"):
        console.print(f"about {span(cost.estimated_duration.seconds)}, judging by this backend's earlier units")
    else:
        console.print("the duration is not known: this backend has not run any units with this reference yet")


def local_time(time: Timestamp) -> str:
    """Return a time to the minute in this machine's time zone; empty if no calendar has such a time."""
    try:
        return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return ""


_ACCESSES = {
    ModelAccess.MODEL_ACCESS_DEPLOYED: ", as deployed, with its guards",
    ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS: ", by its weights, without its guards",
}
"""What a verdict is about, if the subject has guards."""


def show_verdict(console: Console, audit: Audit) -> None:
    """Print the verdict in plain words with its assumptions and controls, then the evidence and the evaluations."""
    verdict = audit.verdict
    conclusion = enum_name(Conclusion, verdict.conclusion, "CONCLUSION_")
    damaged = ", damaged" if verdict.damaged else ""
    subject = f"{audit.spec.subject}{_ACCESSES.get(verdict.access, '')}"
    heading = _text(f"{subject}: {audit.spec.concept} is {conclusion}{damaged}")
    heading.stylize(f"bold {CONCLUSION_COLOURS.get(verdict.conclusion, 'yellow')}")
    console.print()
    console.print(heading)
    if verdict.summary:
        console.print(_text(verdict.summary))
    for sentence in verdict.assumptions:
        console.print(_text(f"Assumed: {sentence}"))
    if verdict.control_statement:
        console.print(_text(verdict.control_statement))
    for note in audit.notes:
        console.print(_text(f"Note: {note}"))
    console.print()
    console.print(_text(verdict.statement))
    for sentence in verdict.evidence:
        console.print(Padding(_text(f"- {sentence}"), (0, 0, 0, 2), expand=False))
    console.print()
    console.print(_evaluations(verdict))
    likelihood = verdict.likelihood
    if verdict.HasField("likelihood"):
        # Absent if the reference itself had no pull to lose.
        lost_pull = _estimate(likelihood.lost_pull) if likelihood.HasField("lost_pull") else "-"
        console.print(
            Text(
                f"destruction {_estimate(likelihood.destruction)}   lost pull {lost_pull}   "
                f"general damage {_estimate(likelihood.general_damage)}"
            )
        )
        # Absent from an older backend.
        if likelihood.HasField("concept_loss"):
            console.print(Text(f"loss on the concept's pictures in all {_estimate(likelihood.concept_loss)}"))
    if verdict.HasField("interference"):
        console.print(Text(f"detection lost on other concepts {_estimate(verdict.interference.loss)}"))
    if verdict.HasField("deployed"):
        _show_deployed(console, verdict.deployed)
    console.print(Text(visible(f"audit {audit.id}   seed base {audit.spec.seed_base}"), style="dim"))


def _show_deployed(console: Console, verdict: Verdict) -> None:
    """Print the verdict on the model with its guards, below that on its weights."""
    heading = Text(f"as deployed, with its guards: {enum_name(Conclusion, verdict.conclusion, 'CONCLUSION_')}")
    heading.stylize(f"bold {CONCLUSION_COLOURS.get(verdict.conclusion, 'yellow')}")
    console.print()
    console.print(heading)
    console.print(_text(verdict.summary))
    console.print(_evaluations(verdict))
    if verdict.HasField("interference"):
        console.print(Text(f"detection lost on other concepts {_estimate(verdict.interference.loss)}"))


def _evaluations(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("evaluation")
    for column in ("subject", "reference", "control"):
        table.add_column(column, justify="right")
    table.add_column("excess, one-sided 95 %", justify="right")
    table.add_column("p (Holm)", justify="right")
    table.add_column("outcome")
    for result in verdict.evaluations:
        tested = result.HasField("excess") and result.HasField("control")
        kind = _CONTROLS.get(result.control_kind, "") if result.HasField("control") else ""
        table.add_row(
            result.title or result.name,
            _rate(result.subject, result.HasField("subject")),
            _rate(result.reference, result.HasField("reference")),
            f"{kind} {_rate(result.control, result.HasField('control'))}".strip(),
            _excess(result),
            f"{result.excess.p_holm:.2g}" if tested else "-",
            enum_name(Outcome, result.outcome, "OUTCOME_"),
        )
    shown = {result.name for result in verdict.evaluations}
    for one in verdict.not_applicable:
        if one.name not in shown:
            outcome = enum_name(Outcome, Outcome.OUTCOME_NOT_APPLICABLE, "OUTCOME_")
            table.add_row(one.title or one.name, "-", "-", "-", "-", "-", outcome)
    return table


_CONTROLS = {
    ControlKind.CONTROL_KIND_PLACEBO: "placebo",
    ControlKind.CONTROL_KIND_CONCEPT_FREE: "concept-free",
    ControlKind.CONTROL_KIND_NONE: "judges' errors",
}
"""What stands in the column of the control, if that is not a model."""


def _excess(result: EvaluationResult) -> str:
    """Return an excess with its bounds; without a control there is only the upper one."""
    if not result.HasField("excess"):
        return "-"
    if not result.HasField("control"):
        return f"at most {result.excess.bounds.upper:+.2f}"
    return f"{result.excess.value:+.2f} [{result.excess.bounds.lower:+.2f}, {result.excess.bounds.upper:+.2f}]"


def _text(text: str) -> Text:
    return Text(isolated(text))


def span(seconds: int) -> str:
    """Return a span of time in words, as in "2 h 5 min"; at least a minute."""
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _rate(rate: Rate, known: bool) -> str:
    excluded = f" ({rate.excluded} excluded)" if rate.excluded else ""
    withheld = f" ({rate.withheld} withheld)" if rate.withheld else ""
    return f"{rate.hits}/{rate.cases}{excluded}{withheld}" if known else "-"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.interval.lower:.2f}, {estimate.interval.upper:.2f}]"


def _unit(evaluation: str, role: ModelRole.ValueType) -> str:
    return visible(f"{evaluation} / {enum_name(ModelRole, role, 'MODEL_ROLE_')}")
