"""Audits of models whose truth is known, and what they say of the evaluations: `calibrate`."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from unerase._calibration import persistently, run_all, specs_of
from unerase._client import Client
from unerase._commands.backend import of_the_backend
from unerase._commands.connecting import connected_or_started
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.following import ended_badly, progress_of, write_reports
from unerase._commands.options import (
    UINT64,
    Address,
    AsJson,
    BatteryPreset,
    Cases,
    DataDir,
    EvaluationOption,
    Steps,
    battery_of,
    check_data_dir,
)
from unerase._commands.output import say_lines, tell
from unerase._counting import count_of
from unerase._files import check_writable, write_whole
from unerase._settings import DEFAULT_ADDRESS
from unerase._visible import visible
from unerase.v1.audits_pb2 import Audit, AuditSpec, AuditState

Out = Annotated[Path, typer.Option(dir_okay=False, help="Write the calibration here, as JSON.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "--models", help="Audit this model; may be repeated. Every model of the concept unless given."
    ),
]
ConceptName = Annotated[str, typer.Option(help="A concept that some model never learned; the only one unless given.")]
Seed = Annotated[int, typer.Option(help="Seed base of all audits.", min=0, max=UINT64)]
RequestId = Annotated[
    str | None, typer.Option(help="Prefix of the audits' request ids; the same call again resumes the same audits.")
]
Reports = Annotated[
    Path | None, typer.Option(file_okay=False, help="Write each audit's report here: MODEL.json, .html, .parquet.")
]
WithoutNever = Annotated[
    bool,
    typer.Option(
        "--without-never",
        help="Hold no audit against a model that never learned the concept, as where nobody has one: "
        "a placebo is the control, or else other concepts' prompts.",
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Start a backend for the command, and end it afterwards.")]


def calibrate(
    out: Out,
    model: Models = None,
    concept: ConceptName = "",
    battery: BatteryPreset = "quick",
    evaluation: EvaluationOption = None,
    cases: Cases = 0,
    steps: Steps = 0,
    seed: Seed = 2505,
    request_id: RequestId = None,
    reports: Reports = None,
    without_never: WithoutNever = False,
    local: Local = False,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit models whose truth is known: how often each evaluation brings the concept back, and how often it errs."""
    compute = of_the_backend("calibrate")
    with reported():
        evaluations = battery_of(battery, evaluation, allow_incomplete=True)
        template = AuditSpec(concept=concept, battery=evaluations, cases=cases, steps=steps, seed_base=seed)
        check_data_dir(data_dir, local)
        # Before anything is audited. The calibration may go into the folder of the reports.
        if reports is not None:
            reports.mkdir(parents=True, exist_ok=True)
        check_writable(out)
    with connected_or_started(address, local, data_dir) as client:
        specs = specs_of(template, client.models(), client.concepts(), model or (), without_never=without_never)
        if reports is not None and len({_file_name(spec.subject) for spec in specs}) < len(specs):
            fail("--reports: two of the models have names with the same last part", ExitCode.BAD_INPUT)
        prefix = uuid.uuid4().hex[:12] if request_id is None else request_id
        tell(f"{count_of(len(specs), 'audit')}; if the command is interrupted, resume with --request-id {prefix}")
        ended = run_all(client, specs, prefix, lambda: progress_of(as_json))
        succeeded = [audit for audit in ended if audit.state == AuditState.AUDIT_STATE_SUCCEEDED]
        exported = [persistently(client.report_parquet, audit.id) for audit in succeeded]
        if reports is not None:
            _write_reports(client, succeeded, reports)
    failed = [
        visible(ended_badly(audit, f" of {audit.spec.subject}"))
        for audit in ended
        if audit.state != AuditState.AUDIT_STATE_SUCCEEDED
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


def _write_reports(client: Client, audits: Sequence[Audit], folder: Path) -> None:
    for audit in audits:
        html, json_file, parquet = (
            folder / f"{_file_name(audit.spec.subject)}.{form}" for form in ("html", "json", "parquet")
        )
        write_reports(client, audit.id, html, json_file, parquet)


def _file_name(model: str) -> str:
    return visible(model.rpartition("/")[2])
