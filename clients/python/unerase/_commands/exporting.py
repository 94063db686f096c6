"""`unerase export`: a report's JSON file for other programs. No backend is asked."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.options import output_file
from unerase._commands.output import as_json, tell
from unerase._files import resolved, write_whole
from unerase.integrations import every_eval_ever, in_toto, mlflow
from unerase.integrations._reports import ReportFile
from unerase.v1.audits_pb2 import Report

export_app = typer.Typer(no_args_is_help=True)

ReportPath = Annotated[
    Path,
    typer.Argument(
        metavar="REPORT",
        dir_okay=False,
        help="JSON that `unerase report ID --json-file FILE` or `unerase campaign report` has written.",
    ),
]
Out = Annotated[Path | None, typer.Option(dir_okay=False, help="Write to this file.", callback=output_file)]


@export_app.command("every-eval-ever")
def export_every_eval_ever(
    report: ReportPath,
    organisation: Annotated[str, typer.Option(help="The organisation that provides the record.")],
    out: Out = None,
    relationship: Annotated[
        str, typer.Option(help=f"Of the evaluator to the model: {', '.join(every_eval_ever.RELATIONSHIPS)}.")
    ] = "third_party",
    availability: Annotated[
        str, typer.Option(help=f"Of the model's weights: {', '.join(every_eval_ever.AVAILABILITY)}.")
    ] = "unknown",
    model_id: Annotated[str, typer.Option(help="The model's id elsewhere; default its name in the catalogue.")] = "",
) -> None:
    """Write an audit as a record of Every Eval Ever, schema 0.3.0."""
    file = _read(report, out)
    if not isinstance(file.message, Report):
        fail(f"{report} is the report of a campaign; a record is about one audit", ExitCode.BAD_INPUT)
    try:
        source = every_eval_ever.Source(organisation, relationship, availability, model_id)
        record = every_eval_ever.record(file.message, source, datetime.now(UTC))
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)
    _write(record, out)


@export_app.command("in-toto")
def export_in_toto(
    report: ReportPath,
    key: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Private key in PEM, PKCS #8. Without one the statement is written without signature."
        ),
    ] = None,
    out: Out = None,
) -> None:
    """Write a report as an in-toto statement (test-result), signed as DSSE."""
    if key is not None and out is not None and resolved(out) == resolved(key):
        fail("--out is the file of the key; give it another file", ExitCode.BAD_INPUT)
    file = _read(report, out)
    try:
        with reported():
            statement = in_toto.statement(file)
            _write(statement if key is None else in_toto.sign(statement, key), out)
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)


@export_app.command("mlflow")
def export_mlflow(
    report: ReportPath,
    experiment: Annotated[str, typer.Option(help="MLflow's experiment; created if there is none.")] = "unerase",
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's tracking server, or a database; default MLflow's own.")
    ] = None,
) -> None:
    """Log a campaign's report to MLflow: a run for the campaign, and one for each cell."""
    file = _read(report, None)
    try:
        with reported():
            print(mlflow.log(file, experiment, tracking_uri))
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)


def _read(path: Path, out: Path | None) -> ReportFile:
    if out is not None and resolved(out) == resolved(path):
        fail("--out is the report itself; give it another file", ExitCode.BAD_INPUT)
    try:
        with reported():
            return ReportFile.read(path)
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)


def _write(value: dict[str, Any], out: Path | None) -> None:
    if out is None:
        print(as_json(value))
        return
    with reported():
        write_whole(out, json.dumps(value, indent=1, allow_nan=False) + "\n")
    tell(f"written: {out}")
