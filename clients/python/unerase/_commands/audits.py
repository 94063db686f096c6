"""Audits: `audit`, `watch`, `report`, `verdict`, `audits`, `cancel` and `delete`."""

import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from unerase._commands.backend import of_the_backend
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.following import (
    announce,
    create,
    follow,
    goes_on,
    how_to_go_on,
    how_to_go_on_locally,
    progress_of,
    show_ended,
    write_reports,
)
from unerase._commands.options import (
    UINT64,
    Address,
    AsJson,
    AuditId,
    Cases,
    DataDir,
    EvaluationOption,
    HtmlFile,
    JsonFile,
    ParquetFile,
    RequestId,
    Steps,
    Timeout,
    ToleranceOption,
    different,
    evaluation_request,
    finite,
    tolerances_of,
)
from unerase._commands.output import say, say_json, show_list, stdout
from unerase._display import event_line, local_time, show_cost, state_name
from unerase._local import local_backend
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.audits_pb2 import Audit, AuditSpec, AuditState, Battery


def audit(
    subject: Annotated[str, typer.Argument(help="Catalogue name of the erased model.")],
    concept: Annotated[str, typer.Option(help="Catalogue name of the concept.")],
    reference: Annotated[str, typer.Option(help="The model it was made from; its base unless given.")] = "",
    assume_reference: Annotated[
        bool,
        typer.Option("--assume-reference", help="Take the reference although it has another base, or is the subject."),
    ] = False,
    control: Annotated[str, typer.Option(help="A model that never learned the concept.")] = "",
    assume_control: Annotated[
        bool,
        typer.Option(
            "--assume-control", help="Take the control although no catalogue says it never learned the concept."
        ),
    ] = False,
    placebo: Annotated[
        str, typer.Option(help="A concept that no model knows, as the control of injecting evaluations.")
    ] = "",
    battery: Annotated[
        str, typer.Option(help="Preset: quick, standard or full; empty takes --evaluation alone.")
    ] = "standard",
    evaluation: EvaluationOption = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Conclude although a required evaluation is missing.")
    ] = False,
    cases: Cases = 0,
    steps: Steps = 0,
    guidance_scale: Annotated[
        float | None, typer.Option(help="The reference's own unless given.", callback=finite)
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop an evaluation as soon as its answer is settled.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed base; drawn at random unless given.", min=0, max=UINT64)
    ] = None,
    tolerance: ToleranceOption = None,
    selector: Annotated[
        str, typer.Option(help="Judge that picks the best of many; the catalogue's unless given.")
    ] = "",
    judge: Annotated[str, typer.Option(help="Judge that decides; the catalogue's unless given.")] = "",
    second_judge: Annotated[str, typer.Option(help="Judge whose agreement is measured.")] = "",
    request_id: RequestId = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan it, say what it would take, and do not run it.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the audit's id as soon as it is accepted, and do not wait.")
    ] = False,
    html: HtmlFile = None,
    json_file: JsonFile = None,
    parquet: ParquetFile = None,
    local: Annotated[bool, typer.Option("--local", help="Start a backend for this audit, and end it after.")] = False,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit a model: watch it, print the verdict with its evidence, write the report."""
    files = (html, json_file, parquet)
    _refuse_contradictions(files, dry_run, detach, local, data_dir)
    with reported():
        spec = AuditSpec(
            subject=subject,
            concept=concept,
            reference=reference,
            assume_reference=assume_reference,
            control=control,
            assume_control=assume_control,
            placebo=placebo,
            battery=Battery(
                preset=battery,
                evaluations=[evaluation_request(text) for text in evaluation or ()],
                allow_incomplete=allow_incomplete,
            ),
            cases=cases,
            steps=steps,
            guidance_scale=guidance_scale,
            seed_base=seed,
            tolerances=tolerances_of(tolerance or ()),
            selector=selector,
            judge=judge,
            second_judge=second_judge,
            sequential=sequential,
        )
    with reported(), local_backend(data_dir) if local else nullcontext(address) as at, connected(at) as client:
        if dry_run:
            planned = client.create_audit(spec, request_id=request_id, validate_only=True)
            say_json(planned) if as_json else show_cost(stdout, planned)
            return
        accepted = create(client, spec, uuid.uuid4().hex if request_id is None else request_id)
        if detach:
            say_json(accepted) if as_json else say(accepted.id)
            return
        how = how_to_go_on_locally(accepted.id, data_dir) if local else how_to_go_on(accepted.id)
        with goes_on(how):
            announce(accepted, how, as_json)
            with progress_of(as_json) as progress:
                ended = follow(client, accepted, progress, timeout)
        if ended.state == AuditState.AUDIT_STATE_SUCCEEDED:
            write_reports(client, ended.id, *files)
        show_ended(ended, as_json)


def _refuse_contradictions(
    files: tuple[Path | None, ...], dry_run: bool, detach: bool, local: bool, data_dir: Path | None
) -> None:
    if detach and (local or dry_run):
        fail("--detach: nothing would go on with --local or --dry-run", ExitCode.BAD_INPUT)
    if (detach or dry_run) and any(file is not None for file in files):
        fail("--html, --json-file and --parquet: there is no report with --detach or --dry-run", ExitCode.BAD_INPUT)
    if data_dir is not None and not local:
        fail("--data-dir is the folder of a backend that --local starts", ExitCode.BAD_INPUT)
    different(files)


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


def audits(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the audits, newest first."""
    with connected(address) as client:
        rows = list(client.audits())
        show_list(rows, ["id", "subject", "concept", "state", "expected end"], _row, as_json)


def cancel(audit_id: AuditId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Cancel an audit."""
    with connected(address) as client:
        cancelled = client.cancel(audit_id)
        say_json(cancelled) if as_json else say(state_name(cancelled))


def delete(audit_id: AuditId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Delete an audit that has ended, with its reports and pictures."""
    with connected(address) as client:
        client.delete(audit_id)
        say_json({"deleted": audit_id}) if as_json else say("deleted")


def _row(row: Audit) -> list[str]:
    expected = local_time(row.estimated_end_time) if row.HasField("estimated_end_time") else ""
    return [row.id, row.spec.subject, row.spec.concept, state_name(row), expected]
