"""One audit from its request to its report: `audit`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unerase._applicability import inapplicable
from unerase._client import Client
from unerase._commands.connecting import connected_or_started
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.following import (
    announce,
    create,
    follow,
    goes_on,
    how_to_go_on,
    progress_of,
    show_ended,
    tell_notes,
    write_reports,
)
from unerase._commands.options import (
    UINT64,
    Address,
    AsJson,
    BatteryPreset,
    Cases,
    DataDir,
    EvaluationOption,
    HtmlFile,
    JsonFile,
    LabelOption,
    ParquetFile,
    RequestId,
    Steps,
    Timeout,
    ToleranceOption,
    WebhookOption,
    battery_of,
    check_data_dir,
    different,
    finite,
    labels_of,
    tolerances_of,
)
from unerase._commands.output import say, say_json, stdout
from unerase._commands.prompts import PackFile, PromptsFile, spec_of_files
from unerase._display import show_cost
from unerase._repeating import new_id
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.audits_pb2 import Audit, AuditSpec, AuditState
from unerase.v1.types_pb2 import ControlKind, DecidedBy, ModelAccess

Subject = Annotated[str, typer.Argument(help="Catalogue name of the erased model.")]
ConceptName = Annotated[str, typer.Option(help="Catalogue name of the concept.")]
Reference = Annotated[
    str, typer.Option(help="The model that the subject was made from; its base, if it has one, unless given.")
]
AssumeReference = Annotated[
    bool,
    typer.Option("--assume-reference", help="Accept the reference although it has another base or is the subject."),
]
Control = Annotated[str, typer.Option(help="A model that never learned the concept.")]
AssumeControl = Annotated[
    bool,
    typer.Option(
        "--assume-control", help="Accept the control although no catalogue says that it never learned the concept."
    ),
]
Placebo = Annotated[
    list[str] | None,
    typer.Option(
        help="A concept that no model knows, as the control in place of a model; may be repeated. "
        "The catalogue's that fit unless given."
    ),
]


class _Control(StrEnum):
    """The kinds of control that a request may ask for."""

    MODEL = "model"
    PLACEBO = "placebo"
    CONCEPT_FREE = "concept-free"
    NONE = "none"


class _Access(StrEnum):
    """The accesses that a request may ask for."""

    DEPLOYED = "deployed"
    OPEN_WEIGHTS = "open-weights"
    BOTH = "both"


class _Deciding(StrEnum):
    """The judges that may decide a case."""

    JUDGE = "judge"
    BOTH = "both"


ControlOption = Annotated[
    _Control | None,
    typer.Option(help="The only kind of control that evaluations may have; the best that each can have unless given."),
]
DecidedByOption = Annotated[
    _Deciding | None, typer.Option(help="Whose detection decides a case: the judge's, or both judges' unless given.")
]
AccessOption = Annotated[
    _Access | None,
    typer.Option(
        help="Whether the subject's guards stay (deployed), or not (open-weights). "
        "Both, each with its verdict, unless given; a subject without guards is the same either way."
    ),
]
AllowIncomplete = Annotated[
    bool, typer.Option("--allow-incomplete", help="Conclude even if a required evaluation is missing.")
]
GuidanceScale = Annotated[float | None, typer.Option(help="The reference's own unless given.", callback=finite)]
OwnSchedules = Annotated[
    bool,
    typer.Option(
        "--own-schedules",
        help="Step each model by the schedule of its own folder, also where it is not the reference's.",
    ),
]
Sequential = Annotated[bool, typer.Option("--sequential", help="Stop an evaluation as soon as its answer is settled.")]
Seed = Annotated[int | None, typer.Option(help="Seed base; drawn at random unless given.", min=0, max=UINT64)]
Selector = Annotated[str, typer.Option(help="Judge that picks the best draw; the catalogue's unless given.")]
DecidingJudge = Annotated[str, typer.Option(help="Judge that decides; the catalogue's unless given.")]
SecondJudge = Annotated[str, typer.Option(help="Judge whose agreement is measured.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Plan the audit and print what it would take, without running it.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Print the audit's id as soon as the audit is accepted, and do not wait.")
]
Local = Annotated[bool, typer.Option("--local", help="Start a backend for this audit, and end it afterwards.")]


def audit(
    subject: Subject,
    concept: ConceptName,
    reference: Reference = "",
    assume_reference: AssumeReference = False,
    control: Control = "",
    assume_control: AssumeControl = False,
    placebo: Placebo = None,
    control_kind: ControlOption = None,
    battery: BatteryPreset = "standard",
    evaluation: EvaluationOption = None,
    allow_incomplete: AllowIncomplete = False,
    cases: Cases = 0,
    prompts: PromptsFile = None,
    pack: PackFile = None,
    steps: Steps = 0,
    guidance_scale: GuidanceScale = None,
    own_schedules: OwnSchedules = False,
    sequential: Sequential = False,
    seed: Seed = None,
    tolerance: ToleranceOption = None,
    selector: Selector = "",
    judge: DecidingJudge = "",
    second_judge: SecondJudge = "",
    decided_by: DecidedByOption = None,
    access: AccessOption = None,
    label: LabelOption = None,
    request_id: RequestId = None,
    webhook: WebhookOption = "",
    dry_run: DryRun = False,
    detach: Detach = False,
    html: HtmlFile = None,
    json_file: JsonFile = None,
    parquet: ParquetFile = None,
    local: Local = False,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit a model: follow the audit, print the verdict with its evidence, write the report."""
    files, labels = (html, json_file, parquet), labels_of(label)
    _refuse_contradictions(files, dry_run, detach, local, data_dir)
    with reported():
        spec = AuditSpec(subject=subject, concept=concept, reference=reference, control=control, placebos=placebo)
        spec.assume_reference, spec.assume_control, spec.own_schedules = assume_reference, assume_control, own_schedules
        spec.MergeFrom(AuditSpec(battery=battery_of(battery, evaluation, allow_incomplete), sequential=sequential))
        spec.MergeFrom(AuditSpec(steps=steps, guidance_scale=guidance_scale, seed_base=seed))
        spec.MergeFrom(spec_of_files(concept, prompts, pack, cases, guidance_scale))
        spec.MergeFrom(_judged(selector, judge, second_judge, control_kind, decided_by, access))
        spec.tolerances.CopyFrom(tolerances_of(tolerance or ()))
    with connected_or_started(address, local, data_dir) as client:
        if dry_run:
            _show_plan(_planned(client, spec, labels, request_id, webhook), as_json)
            return
        accepted = create(client, spec, labels, new_id(request_id), webhook)
        if detach:
            _show_accepted(accepted, as_json)
            return
        _follow_to_its_end(client, accepted, how_to_go_on(accepted.id, local, data_dir), files, timeout, as_json)


def _planned(client: Client, spec: AuditSpec, labels: dict[str, str], request_id: str | None, webhook: str) -> Audit:
    """Return an audit as it would be created, with all that would be checked."""
    return client.create_audit(spec, labels=labels, request_id=request_id, webhook=webhook, validate_only=True)


def _follow_to_its_end(
    client: Client,
    accepted: Audit,
    how: str,
    files: tuple[Path | None, Path | None, Path | None],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Follow an audit, write its reports and show how it ended."""
    with goes_on(how):
        announce(accepted, how, as_json)
        with progress_of(as_json) as progress:
            ended = follow(client, accepted, progress, timeout)
    if ended.state == AuditState.AUDIT_STATE_SUCCEEDED:
        write_reports(client, ended.id, *files)
    show_ended(ended, as_json)


def _judged(
    selector: str,
    judge: str,
    second_judge: str,
    control_kind: _Control | None,
    decided_by: _Deciding | None,
    access: _Access | None,
) -> AuditSpec:
    """Return the part of a request that says who judges what against what; what is not given is left to the backend."""
    spec = AuditSpec(selector=selector, judge=judge, second_judge=second_judge)
    if control_kind is not None:
        spec.control_kind = ControlKind.Value(f"CONTROL_KIND_{control_kind.name}")
    if decided_by is not None:
        spec.decided_by = DecidedBy.Value(f"DECIDED_BY_{decided_by.name}")
    if access is not None:
        spec.access = ModelAccess.Value(f"MODEL_ACCESS_{access.name}")
    return spec


def _show_plan(planned: Audit, as_json: bool) -> None:
    if as_json:
        say_json(planned)
    else:
        show_cost(stdout, planned.cost, without=inapplicable(planned.spec))
        tell_notes(planned)


def _show_accepted(accepted: Audit, as_json: bool) -> None:
    if as_json:
        say_json(accepted)
    else:
        say(accepted.id)
        tell_notes(accepted)


def _refuse_contradictions(
    files: tuple[Path | None, ...], dry_run: bool, detach: bool, local: bool, data_dir: Path | None
) -> None:
    if detach and (local or dry_run):
        fail("--detach: cannot be combined with --local or --dry-run, which leave no audit running", ExitCode.BAD_INPUT)
    if (detach or dry_run) and any(file is not None for file in files):
        fail("--html, --json-file and --parquet: there is no report with --detach or --dry-run", ExitCode.BAD_INPUT)
    check_data_dir(data_dir, local)
    different(files)
