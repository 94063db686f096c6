"""Audits that are there, and what is left of them: `watch`, `report`, `verdict`, `audits`, `cancel` and `delete`."""

from pathlib import Path
from typing import Annotated

import typer

from unerase._campaign_display import conclusion_word
from unerase._commands.backend import of_the_backend
from unerase._commands.changing import as_it_was, cancelled_line
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.following import goes_on, show_ended, write_reports
from unerase._commands.options import (
    UINT64,
    Address,
    AsJson,
    AuditId,
    FilterOption,
    HtmlFile,
    JsonFile,
    OrderOption,
    ParquetFile,
    Timeout,
    ToleranceOption,
    different,
    tolerances_of,
)
from unerase._commands.output import say, say_json, show_list
from unerase._display import event_line, local_time, state_name
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.audits_pb2 import Audit, AuditState


def watch(
    audit_id: AuditId,
    after: Annotated[int, typer.Option(help="The last sequence number already seen.", min=0, max=UINT64)] = 0,
    timeout: Timeout = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Follow an audit's events, then print its verdict."""
    with connected(address) as client:
        with goes_on(f"`unerase cancel {audit_id}` ends it."):
            for event in client.watch(audit_id, after, timeout=timeout):
                say_json(event) if as_json else say(event_line(event))
            ended = client.get_audit(audit_id)
        if not as_json:
            show_ended(ended, as_json)


def report(
    audit_id: AuditId,
    html: HtmlFile = None,
    json_file: JsonFile = None,
    parquet: ParquetFile = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write an audit's report, or print its verdict."""
    files = (html, json_file, parquet)
    different(files)
    with connected(address) as client:
        write_reports(client, audit_id, *files)
        if as_json:
            say_json(client.report_json(audit_id))
        elif all(file is None for file in files):
            show_ended(client.get_audit(audit_id), as_json)


def verdict(
    file: Annotated[
        Path,
        typer.Argument(dir_okay=False, help="Observations, as `unerase report ID --parquet FILE` writes them."),
    ],
    tolerance: ToleranceOption = None,
    as_json: AsJson = False,
) -> None:
    """Conclude from exported observations, without a backend and with other tolerances if given."""
    conclude = of_the_backend("verdict")
    try:
        with reported():
            show_ended(conclude(file, tolerances_of(tolerance or ())), as_json)
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)


def audits(
    filter: FilterOption = "", order_by: OrderOption = "", address: Address = DEFAULT_ADDRESS, as_json: AsJson = False
) -> None:
    """List the audits, newest first."""
    with connected(address) as client:
        rows = list(client.audits(filter=filter, order_by=order_by))
        show_list(rows, ["id", "created", "subject", "concept", "state", "conclusion", "expected end"], _row, as_json)


def cancel(audit_id: AuditId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Cancel an audit; one that has ended stays as it is."""
    with connected(address) as client:
        before = as_it_was(lambda: client.get_audit(audit_id))
        cancelled = client.cancel(audit_id)
    known = state_name(before) if before else ""
    line = cancelled_line(f"audit {audit_id}", known, state_name(cancelled))
    say_json(cancelled) if as_json else say(line)


def delete(audit_id: AuditId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Delete an audit that has ended, with its reports and pictures."""
    with connected(address) as client:
        client.delete(audit_id)
        say_json({"deleted": audit_id}) if as_json else say("deleted")


def _row(row: Audit) -> list[str]:
    expected = local_time(row.estimated_end_time) if row.HasField("estimated_end_time") else ""
    created = local_time(row.create_time)
    concluded = conclusion_word(row.verdict) if row.state == AuditState.AUDIT_STATE_SUCCEEDED else ""
    return [row.id, created, row.spec.subject, row.spec.concept, state_name(row), concluded, expected]
