"""An audit from its acceptance to its end: its id, its progress, its reports, its verdict."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from unerase._applicability import inapplicable
from unerase._client import Client
from unerase._commands.failing import ExitCode, fail
from unerase._commands.output import as_json, say_json, stderr, stdout, tell
from unerase._display import LiveProgress, show_verdict, state_name
from unerase._errors import UneraseError
from unerase._files import write_whole
from unerase._visible import visible
from unerase.v1.audits_pb2 import Audit, AuditSpec, AuditState, ReportFormat

_ASK_SECONDS = 15.0
# The answer was lost: the backend may have accepted the request.
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@contextmanager
def may_be_lost(noun: str, request_id: str) -> Iterator[None]:
    """Add to an error of a creation without an answer how to find out whether it was accepted."""
    how = (
        f"It is not known whether the {noun} was accepted: run the same command with "
        f"--request-id {visible(request_id)} to find out."
    )
    try:
        yield
    except UneraseError as error:
        if error.code in _LOST:
            error.add_note(how)
        raise
    except KeyboardInterrupt as error:
        error.add_note(how)
        raise


def create(client: Client, spec: AuditSpec, labels: Mapping[str, str], request_id: str, webhook: str = "") -> Audit:
    """Create an audit; without an answer, the error says how to find out whether it was accepted.

    Raises:
        UneraseError: the audit was not accepted, or no answer came.
    """
    with may_be_lost("audit", request_id):
        return client.create_audit(spec, labels=labels, request_id=request_id, webhook=webhook)


def announce(audit: Audit, how: str, in_json: bool) -> None:
    """Write to stderr which audit was accepted, before anything else can fail; as a line of JSON for machines."""
    if in_json:
        print(as_json({"id": audit.id, "request_id": audit.request_id}), file=sys.stderr, flush=True)
    else:
        tell(f"audit {audit.id} is accepted. {how}")
        tell_notes(audit)


def tell_notes(audit: Audit) -> None:
    """Write to stderr what was noticed about the audit's inputs, and what does not apply to its models."""
    for note in audit.notes:
        tell(f"note: {note}")
    for name, reason in inapplicable(audit.spec).items():
        tell(f"not applicable: {name}: {reason}")


def how_to_go_on(name: str, local: bool = False, data_dir: Path | None = None, group: str = "") -> str:
    """Return how to follow and how to cancel an audit, or with its `group` of commands a campaign.

    A `local` backend ends with the command; it is said how to resume there.
    """
    command = f"unerase {group}".rstrip()
    how = f"`{command} watch {visible(name)}` follows it, `{command} cancel {visible(name)}` ends it."
    if not local:
        return how
    serve = "unerase serve" if data_dir is None else f"unerase serve --data-dir {visible(str(data_dir))}"
    return f"Its backend ends with this command and keeps the {group or 'audit'}: `{serve}` resumes it. {how}"


@contextmanager
def goes_on(how: str, noun: str = "audit") -> Iterator[None]:
    """Add to an error or Ctrl-C that the audit or campaign goes on, and how to follow it."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"The {noun} goes on. {how}")
        raise
    except UneraseError as error:
        if error.code == grpc.StatusCode.UNAVAILABLE:
            error.add_note(f"The {noun} goes on when the backend is back. {how}")
        elif error.code != grpc.StatusCode.NOT_FOUND:
            error.add_note(f"The {noun} goes on. {how}")
        raise


def follow(client: Client, audit: Audit, progress: LiveProgress, timeout: float | None) -> Audit:
    """Show an audit's progress until it ends, and return it; raises what `Client.watch` raises."""
    asked = time.monotonic()
    for event in client.watch(audit.id, timeout=timeout):
        progress.show(event)
        if time.monotonic() - asked > _ASK_SECONDS:
            asked = time.monotonic()
            # The expected end is optional; the watch itself reports a lost backend.
            with suppress(UneraseError):
                progress.expect(client.get_audit(audit.id))
    return client.get_audit(audit.id)


def write_reports(
    client: Client, audit_id: str, html: Path | None, json_file: Path | None, parquet: Path | None
) -> None:
    """Write the forms of a report that are asked for.

    Raises:
        UneraseError: the backend does not give one.
        OSError: a file cannot be written.
    """
    for file, form in (
        (html, ReportFormat.REPORT_FORMAT_HTML),
        (json_file, ReportFormat.REPORT_FORMAT_JSON),
        (parquet, ReportFormat.REPORT_FORMAT_PARQUET),
    ):
        if file is None:
            continue
        try:
            write_whole(file, client.report(audit_id, form))
        except (UneraseError, OSError) as error:
            error.add_note(f"The audit is kept: `unerase report {visible(audit_id)}` writes its report again.")
            raise
        tell(f"report: {file}")


def show_ended(ended: Audit, in_json: bool) -> None:
    """Print an audit that has ended; end the command with an error if it has no verdict."""
    if in_json:
        say_json(ended)
    elif ended.state == AuditState.AUDIT_STATE_SUCCEEDED:
        show_verdict(stdout, ended)
    if ended.state != AuditState.AUDIT_STATE_SUCCEEDED:
        fail(visible(ended_badly(ended)), ExitCode.AUDIT_FAILED)


def ended_badly(ended: Audit, of: str = "") -> str:
    """Return how an audit ended without a verdict."""
    return f"audit {ended.id}{of}: {state_name(ended)} {ended.error_reason} {ended.error_message}".rstrip()


def progress_of(in_json: bool) -> LiveProgress:
    """Return a progress bar on stderr; hidden if only machines read the output."""
    return LiveProgress(stderr, hidden=in_json and not stderr.is_terminal)
