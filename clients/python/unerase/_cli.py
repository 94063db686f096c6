"""The command `unerase`.

Exit codes: 0 the audit ended (whatever its verdict); 1 something unexpected; 2 bad input, or a limit; 3 the audit
failed or was cancelled; 4 no backend answers; 124 `--timeout` is over; 130 Ctrl-C. docs/client.md has the whole table.
"""

import sys
import uuid
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from unerase._calibration import chosen, persistently, run_all, specs_of
from unerase._commands import audits, catalogue, operator
from unerase._commands.backend import of_the_backend
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.following import ended_badly, progress_of, write_reports
from unerase._commands.options import (
    UINT64,
    Address,
    AsJson,
    Cases,
    DataDir,
    EvaluationOption,
    Steps,
    evaluation_request,
)
from unerase._commands.output import say, say_lines, tell
from unerase._files import check_writable, write_whole
from unerase._local import local_backend
from unerase._settings import DEFAULT_ADDRESS
from unerase._visible import visible
from unerase.v1.audits_pb2 import AuditSpec, AuditState, Battery

app = typer.Typer(
    help="Tells whether a concept was really erased from a text-to-image model, or only hidden.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks is shown as an escape; it is no reason to end.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()


def _show_version(asked: bool) -> None:
    if asked:
        say(f"unerase {version('unerase')}")
        raise typer.Exit


@app.callback()
def unerase(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Tells whether a concept was really erased from a text-to-image model, or only hidden."""


# Its options, --help among them, are the backend's.
app.command(add_help_option=False, context_settings=operator.SERVE_SETTINGS)(operator.serve)
app.command()(audits.audit)
app.command()(audits.watch)
app.command()(audits.report)
app.command()(audits.verdict)


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(dir_okay=False, help="Write the calibration here, as JSON.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "--models", help="Audit this one; may be repeated. Every model of the concept unless given."
        ),
    ] = None,
    concept: Annotated[
        str, typer.Option(help="A concept that some model never learned; the only one unless given.")
    ] = "",
    battery: Annotated[
        str, typer.Option(help="Preset: quick, standard or full; empty takes --evaluation alone.")
    ] = "quick",
    evaluation: EvaluationOption = None,
    cases: Cases = 0,
    steps: Steps = 0,
    seed: Annotated[int, typer.Option(help="Seed base of all audits.", min=0, max=UINT64)] = 2505,
    request_id: Annotated[
        str | None,
        typer.Option(help="Prefix of the audits' request ids: the same call again takes up the same audits."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write each audit's report here: MODEL.json, .html, .parquet.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Start a backend for it, and end it after.")] = False,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit models whose truth is known: how often each evaluation brings the concept back, and how often it errs."""
    compute = of_the_backend("calibrate")
    evaluations = [evaluation_request(text) for text in evaluation or ()]
    if data_dir is not None and not local:
        fail("--data-dir is the folder of a backend that --local starts", ExitCode.BAD_INPUT)
    with reported():
        # Before anything is audited; the calibration may lie in a folder that the reports make.
        if reports is not None:
            reports.mkdir(parents=True, exist_ok=True)
        check_writable(out)
    with reported(), local_backend(data_dir) if local else nullcontext(address) as at, connected(at) as client:
        sought, reference, names = chosen(client.models(), client.concepts(), concept, model or ())
        if reports is not None and len({_file_name(name) for name in names}) < len(names):
            fail("--reports: the names of two of the models end alike", ExitCode.BAD_INPUT)
        shared = AuditSpec(
            reference=reference,
            concept=sought,
            battery=Battery(preset=battery, evaluations=evaluations, allow_incomplete=True),
            cases=cases,
            steps=steps,
            seed_base=seed,
        )
        specs = specs_of(shared, names)
        prefix = uuid.uuid4().hex[:12] if request_id is None else request_id
        tell(f"{len(specs)} audits; should it break off, go on with --request-id {prefix}")
        ended = run_all(client, specs, prefix, lambda: progress_of(as_json))
        succeeded = [each for each in ended if each.state == AuditState.AUDIT_STATE_SUCCEEDED]
        exported = [persistently(client.report_parquet, each.id) for each in succeeded]
        if reports is not None:
            for each in succeeded:
                named = [reports / f"{_file_name(each.spec.subject)}.{form}" for form in ("html", "json", "parquet")]
                write_reports(client, each.id, *named)
    failed = [
        visible(ended_badly(each, f" of {each.spec.subject}"))
        for each in ended
        if each.state != AuditState.AUDIT_STATE_SUCCEEDED
    ]
    try:
        content, table = compute(exported)
    except ValueError as error:
        fail("\n".join([*failed, str(error)]), ExitCode.AUDIT_FAILED if failed else ExitCode.BAD_INPUT)
    with reported():
        write_whole(out, content)
    tell(f"calibration: {out}")
    say_lines(content if as_json else table)
    if failed:
        fail("\n".join(failed), ExitCode.AUDIT_FAILED)


app.command()(audits.audits)
app.command()(audits.cancel)
app.command()(audits.delete)
app.command()(catalogue.models)
app.command()(operator.health)
app.command()(catalogue.evaluations)
app.add_typer(operator.tokens_app, name="tokens", help="Create, list and revoke the tokens that a backend asks for.")
app.add_typer(operator.deploy_app, name="deploy", help="Check how a cluster is told to run the backend.")
app.add_typer(catalogue.concepts_app, name="concepts")


def _file_name(model: str) -> str:
    return visible(model.rpartition("/")[2])
