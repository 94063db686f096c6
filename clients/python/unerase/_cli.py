"""The command `unerase`.

Exit codes: 0 the audit ended (whatever its verdict); 1 something unexpected; 2 bad input; 3 the audit failed or was
cancelled; 4 no backend answers.
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import grpc
import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unerase._calibration import chosen, persistently, run_all, specs_of
from unerase._client import Client
from unerase._concept_file import read_concept_file
from unerase._display import LiveProgress, event_line, name_of, show_verdict, state_name
from unerase._environment import settings_from_environment
from unerase._errors import UneraseError
from unerase._local import local_backend
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.audits_pb2 import Audit, AuditSpec, AuditState, Battery, ReportFormat, Tolerances
from unerase.v1.types_pb2 import EvaluationClass, EvaluationRequest

BAD_INPUT, AUDIT_FAILED, UNREACHABLE = 2, 3, 4
_EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: BAD_INPUT,
    grpc.StatusCode.NOT_FOUND: BAD_INPUT,
    grpc.StatusCode.ALREADY_EXISTS: BAD_INPUT,
    grpc.StatusCode.FAILED_PRECONDITION: BAD_INPUT,
    grpc.StatusCode.UNAUTHENTICATED: BAD_INPUT,
    grpc.StatusCode.PERMISSION_DENIED: BAD_INPUT,
    grpc.StatusCode.UNAVAILABLE: UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNREACHABLE,
}

app = typer.Typer(
    help="Tells whether a concept was really erased from a text-to-image model, or only hidden.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tokens_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(tokens_app, name="tokens", help="Create, list and revoke the tokens that a backend asks for.")
deploy_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(deploy_app, name="deploy", help="Check how a cluster is told to run the backend.")
concepts_app = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False)
app.add_typer(concepts_app, name="concepts")
_stdout, _stderr = Console(), Console(stderr=True)

Address = Annotated[str, typer.Option(help="HOST:PORT of the backend.", envvar="UNERASE_ADDRESS")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
AuditId = Annotated[str, typer.Argument(help="The audit's id.")]
ToleranceOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE: excess, destruction, general_damage or interference; may be repeated."),
]
OutFile = Annotated[Path | None, typer.Option(dir_okay=False, help="Write the report to this file.")]


def main() -> None:
    """Run the command."""
    app()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless given.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 50051 unless given, 0 takes a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 takes a free one.")] = None,
    rooms_metrics_port: Annotated[
        int | None, typer.Option(help="Port where Ray serves the rooms' metrics; a free one unless given.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of databases, artefacts and logs.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL of the artefacts; in the data folder unless given.")
    ] = None,
    catalogue: Annotated[list[Path] | None, typer.Option(help="Catalogue file; may be repeated.")] = None,
    generation_replicas: Annotated[int | None, typer.Option(help="Processes that make pictures.")] = None,
    allow_insecure_bind: Annotated[
        bool | None, typer.Option("--allow-insecure-bind", help="Listen beyond loopback without TLS and tokens.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of authorities: clients need a certificate of theirs.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of tokens, as `unerase tokens` writes it.")] = None,
    log_format: Annotated[str | None, typer.Option(help="Form of the logs: text, unless given, or json.")] = None,
    trace_endpoint: Annotated[
        str | None, typer.Option(help="OTLP receiver of traces, as http://127.0.0.1:4317; none unless given.")
    ] = None,
) -> None:
    """Run the backend on this machine until it is told to stop."""
    run = _of_the_backend("serve")
    try:
        run(
            host=host,
            port=port,
            metrics_port=metrics_port,
            rooms_metrics_port=rooms_metrics_port,
            data_dir=data_dir,
            artifacts=artifacts,
            catalogues=tuple(catalogue) if catalogue else None,
            generation_replicas=generation_replicas,
            allow_insecure_bind=allow_insecure_bind,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            tokens=tokens,
            log_format=log_format,
            trace_endpoint=trace_endpoint,
        )
    except (ValueError, RuntimeError) as error:
        _fail(str(error), BAD_INPUT)


@app.command()
def audit(
    subject: Annotated[str, typer.Argument(help="Catalogue name of the erased model.")],
    concept: Annotated[str, typer.Option(help="Catalogue name of the concept.")],
    reference: Annotated[str, typer.Option(help="The model it was made from; its base unless given.")] = "",
    control: Annotated[str, typer.Option(help="A model that never learned the concept.")] = "",
    placebo: Annotated[
        str, typer.Option(help="A concept that no model knows, as the control of injecting evaluations.")
    ] = "",
    battery: Annotated[
        str, typer.Option(help="Preset: quick, standard or full; empty takes --evaluation alone.")
    ] = "standard",
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="Add NAME, or NAME={...} with parameters as JSON; may be repeated."),
    ] = None,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Conclude although a required evaluation is missing.")
    ] = False,
    cases: Annotated[int, typer.Option(help="Number of cases; 24 unless given.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps; the battery's unless given.", min=0)] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="The reference's own unless given.")] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop an evaluation as soon as its answer is settled.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed base; drawn at random unless given.", min=0)] = None,
    tolerance: ToleranceOption = None,
    selector: Annotated[
        str, typer.Option(help="Judge that picks the best of many; the catalogue's unless given.")
    ] = "",
    judge: Annotated[str, typer.Option(help="Judge that decides; the catalogue's unless given.")] = "",
    second_judge: Annotated[str, typer.Option(help="Judge whose agreement is measured.")] = "",
    request_id: Annotated[str | None, typer.Option(help="Makes the call safe to repeat.")] = None,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the HTML report here.")] = None,
    json_file: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the JSON report here.")] = None,
    parquet: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the observations here.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Start a backend for this audit, and end it after.")] = False,
    data_dir: Annotated[str | None, typer.Option(help="With --local: the backend's folder.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for the end.")] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit a model: watch it, print the verdict with its evidence, write the report."""
    spec = AuditSpec(
        subject=subject,
        concept=concept,
        reference=reference,
        control=control,
        placebo=placebo,
        battery=Battery(
            preset=battery,
            evaluations=[_evaluation(text) for text in evaluation or ()],
            allow_incomplete=allow_incomplete,
        ),
        cases=cases,
        steps=steps,
        guidance_scale=guidance_scale,
        seed_base=seed,
        tolerances=_tolerances(tolerance or ()),
        selector=selector,
        judge=judge,
        second_judge=second_judge,
        sequential=sequential,
    )
    with _reported(), local_backend(data_dir) if local else nullcontext(address) as at, _client(at) as client:
        with LiveProgress(_stderr) as progress:
            ended = client.audit(spec, request_id=request_id, on_event=progress.show, timeout=timeout)
        if ended.state == AuditState.AUDIT_STATE_SUCCEEDED:
            _write_reports(client, ended.id, html, json_file, parquet)
        _show_ended(ended, as_json)


@app.command()
def watch(
    audit_id: AuditId,
    after: Annotated[int, typer.Option(help="The last sequence number already seen.", min=0)] = 0,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Follow an audit's events, then print its verdict."""
    with _reported(), _client(address) as client:
        for event in client.watch(audit_id, after):
            if as_json:
                print(json.dumps(_plain(event)), flush=True)
            else:
                _stdout.print(event_line(event), highlight=False)
        if not as_json:
            _show_ended(client.get_audit(audit_id), as_json)


@app.command()
def report(
    audit_id: AuditId,
    html: OutFile = None,
    json_file: OutFile = None,
    parquet: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the observations to this file, for `unerase verdict`.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write an audit's report, or print its verdict."""
    with _reported(), _client(address) as client:
        _write_reports(client, audit_id, html, json_file, parquet)
        if as_json:
            print(json.dumps(client.report_json(audit_id)))
        elif html is None and json_file is None and parquet is None:
            _show_ended(client.get_audit(audit_id), as_json)


@app.command()
def verdict(
    file: Annotated[Path, typer.Argument(help="Observations, as `unerase report ID --parquet FILE` writes them.")],
    tolerance: ToleranceOption = None,
    as_json: AsJson = False,
) -> None:
    """Conclude from exported observations: without a backend, and at other tolerances where that is asked."""
    conclude = _of_the_backend("verdict")
    try:
        with _reported():
            _show_ended(conclude(file, _tolerances(tolerance or ())), as_json)
    except ValueError as error:
        _fail(str(error), BAD_INPUT)


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
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="Add NAME, or NAME={...} with parameters as JSON; may be repeated."),
    ] = None,
    cases: Annotated[int, typer.Option(help="Number of cases; 24 unless given.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps; the battery's unless given.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed base of all audits.", min=0)] = 2505,
    request_id: Annotated[
        str | None,
        typer.Option(help="Prefix of the audits' request ids: the same call again takes up the same audits."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write each audit's report here: MODEL.json, .html, .parquet.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Start a backend for it, and end it after.")] = False,
    data_dir: Annotated[str | None, typer.Option(help="With --local: the backend's folder.")] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit models whose truth is known: how often each evaluation brings the concept back, and how often it errs."""
    compute = _of_the_backend("calibrate")
    with _reported(), local_backend(data_dir) if local else nullcontext(address) as at, _client(at) as client:
        sought, reference, names = chosen(client.models(), client.concepts(), concept, model or ())
        if reports is not None:
            if len({_file_name(name) for name in names}) < len(names):
                _fail("--reports: the names of two of the models end alike", BAD_INPUT)
            reports.mkdir(parents=True, exist_ok=True)
        shared = AuditSpec(
            reference=reference,
            concept=sought,
            battery=Battery(
                preset=battery, evaluations=[_evaluation(text) for text in evaluation or ()], allow_incomplete=True
            ),
            cases=cases,
            steps=steps,
            seed_base=seed,
        )
        specs = specs_of(shared, names)
        prefix = request_id or uuid.uuid4().hex[:12]
        _stderr.print(f"{len(specs)} audits; should it break off, go on with --request-id {prefix}", highlight=False)
        ended = run_all(client, specs, prefix, lambda: LiveProgress(_stderr))
        succeeded = [each for each in ended if each.state == AuditState.AUDIT_STATE_SUCCEEDED]
        exported = [persistently(client.report_parquet, each.id) for each in succeeded]
        if reports is not None:
            for each in succeeded:
                named = [reports / f"{_file_name(each.spec.subject)}.{form}" for form in ("html", "json", "parquet")]
                _write_reports(client, each.id, *named)
    failed = [
        f"the audit {each.id} of {each.spec.subject} is {state_name(each)} {each.error_reason} {each.error_message}"
        for each in ended
        if each.state != AuditState.AUDIT_STATE_SUCCEEDED
    ]
    try:
        content, table = compute(exported)
    except ValueError as error:
        _fail("\n".join([*failed, str(error)]), AUDIT_FAILED if failed else BAD_INPUT)
    with _reported():
        out.write_text(content)
    _stderr.print(f"calibration: {out}", highlight=False)
    print(content if as_json else table, end="")
    if failed:
        _fail("\n".join(failed), AUDIT_FAILED)


@app.command()
def audits(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the audits, the newest first."""
    with _reported(), _client(address) as client:
        rows = list(client.audits())
        _list(rows, ["id", "subject", "concept", "state"], _audit_row, as_json)


@app.command()
def cancel(audit_id: AuditId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Cancel an audit."""
    with _reported(), _client(address) as client:
        cancelled = client.cancel(audit_id)
        print(json.dumps(_plain(cancelled)) if as_json else state_name(cancelled))


@app.command()
def models(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the models of the catalogue."""
    with _reported(), _client(address) as client:
        _list(
            client.models(),
            ["name", "base", "method", "erased", "digest"],
            lambda model: [model.name, model.base, model.method, ", ".join(model.erased), model.digest[:12]],
            as_json,
        )


@concepts_app.callback()
def concepts(context: typer.Context, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the concepts, or create and delete custom ones."""
    if context.invoked_subcommand is not None:
        for option in ("address", "as_json"):
            source = context.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                _fail(f"options come after {context.invoked_subcommand}", BAD_INPUT)
        return
    with _reported(), _client(address) as client:
        _list(
            client.concepts(),
            ["name", "words", "control", "pictures", "custom"],
            lambda concept: [
                concept.name,
                ", ".join(concept.names),
                concept.control,
                f"{len(concept.picture_digests)} + {len(concept.near_miss_digests)}",
                "custom" if concept.custom else "",
            ],
            as_json,
        )


@concepts_app.command("create")
def create_concept(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="YAML: a catalogue's entry with its name and pictures.")],
    request_id: Annotated[str | None, typer.Option(help="Makes the call safe to repeat.")] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Create a custom concept from a YAML file and the pictures that it names."""
    with _reported():
        try:
            read = read_concept_file(file)
        except ValueError as error:
            _fail(str(error), BAD_INPUT)
        with _client(address) as client:
            concept = client.create_concept(
                read.concept, read.pictures, read.near_misses, tile=read.tile, request_id=request_id
            )
    if as_json:
        print(json.dumps(_plain(concept)))
    else:
        near_misses = len(concept.near_miss_digests)
        print(f"{concept.name}: {len(concept.picture_digests)} pictures, {near_misses} near misses")


@concepts_app.command("delete")
def delete_concept(
    name: Annotated[str, typer.Argument(help="Name of a custom concept.")], address: Address = DEFAULT_ADDRESS
) -> None:
    """Delete a custom concept; its audits keep what they have of it."""
    with _reported(), _client(address) as client:
        client.delete_concept(name)


@app.command()
def health(
    service: Annotated[str, typer.Argument(help="A service's full name; the backend as a whole unless given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0)] = 5.0,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Ask whether the backend serves: exit code 0 if it does, 1 if it drains or a room is away, 4 if none answers."""
    with _reported(), _client(address) as client:
        if not client.serving(service, timeout=timeout):
            _fail(f"{service or 'the backend'} is not serving", 1)
        print("serving")


@app.command()
def evaluations(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the evaluations with their parameters."""
    with _reported(), _client(address) as client:
        _list(
            client.evaluations().evaluations,
            ["name", "class", "what it does", "parameters"],
            lambda evaluation: [
                evaluation.name,
                name_of(EvaluationClass.Name(evaluation.evaluation_class), "EVALUATION_CLASS_"),
                evaluation.summary,
                ", ".join(parameter.name for parameter in evaluation.parameters),
            ],
            as_json,
        )


def _evaluation(text: str) -> EvaluationRequest:
    """Return the evaluation that `NAME` or `NAME={...}` asks for."""
    name, _, parameters = text.partition("=")
    try:
        return json_format.ParseDict({"name": name, "parameters": json.loads(parameters or "{}")}, EvaluationRequest())
    except (json.JSONDecodeError, json_format.ParseError):
        _fail(f"--evaluation {text}: what follows {name}= must be an object in JSON", BAD_INPUT)


TokenFile = Annotated[
    Path, typer.Option("--file", dir_okay=False, help="The file that `unerase serve --tokens` reads.")
]


@tokens_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="What the token is called in the list.")],
    file: TokenFile,
    tenant: Annotated[str, typer.Option(help="Whose audits its bearer sees; letters, digits and -.")],
    scope: Annotated[list[str], typer.Option(help="What it allows, as audit:read; may be repeated.")],
    days: Annotated[float, typer.Option(help="Days until it expires.", min=0)] = 90.0,
) -> None:
    """Add a token to the file and print it, once: the file holds its hash alone."""
    with _of_the_operator():
        print(_of_the_backend("tokens").create(file, name, tenant, scope, days))


@tokens_app.command("list")
def list_tokens(file: TokenFile) -> None:
    """List the tokens of the file."""
    with _of_the_operator():
        table = Table("name", "tenant", "scopes", "expires", box=None, pad_edge=False)
        for entry in _of_the_backend("tokens").listed(file):
            table.add_row(entry.id, entry.tenant, " ".join(entry.scopes), entry.expires.isoformat(timespec="seconds"))
        _stdout.print(table)


@tokens_app.command("revoke")
def revoke_token(name: Annotated[str, typer.Argument(help="The token's name.")], file: TokenFile) -> None:
    """Take a token out of the file."""
    with _of_the_operator():
        _of_the_backend("tokens").revoke(file, name)


@deploy_app.callback()
def deploy() -> None:
    """Check how a cluster is told to run the backend."""


@deploy_app.command("check")
def check_deployment(
    files: Annotated[list[Path], typer.Argument(dir_okay=False, help="Serve configs, as `serve deploy` takes them.")],
) -> None:
    """Find what Serve would ignore, or first learn on the cluster: unknown keys, wrong arguments, missing imports."""
    check = _of_the_backend("deploy")
    found = []
    with _of_the_operator():
        for file in files:
            problems = check(file)
            found += [f"{file.name}: {problem}" for problem in problems]
            if not problems:
                print(f"{file.name}: right")
    if found:
        _fail("\n".join(found), BAD_INPUT)


@contextmanager
def _of_the_operator() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        _fail(str(error), BAD_INPUT)


def _tolerances(texts: Iterable[str]) -> Tolerances:
    """Return the tolerances that `NAME=VALUE` ask for."""
    known = [field.name for field in Tolerances.DESCRIPTOR.fields]
    asked = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            _fail(f"--tolerance {text}: there is no tolerance {name!r}, but {', '.join(known)}", BAD_INPUT)
        try:
            asked[name] = float(value)
        except ValueError:
            _fail(f"--tolerance {text}: what follows {name}= must be a number", BAD_INPUT)
    return Tolerances(**asked)


def _file_name(model: str) -> str:
    return model.rpartition("/")[2]


def _write_reports(
    client: Client, audit_id: str, html: Path | None, json_file: Path | None, parquet: Path | None
) -> None:
    """Write the forms of a report that are asked for."""
    for file, form in (
        (html, ReportFormat.REPORT_FORMAT_HTML),
        (json_file, ReportFormat.REPORT_FORMAT_JSON),
        (parquet, ReportFormat.REPORT_FORMAT_PARQUET),
    ):
        if file is not None:
            file.write_bytes(client.report(audit_id, form))
            _stderr.print(f"report: {file}", highlight=False)


def _of_the_backend(name: str) -> Any:
    """Return what the backend offers the command under `name`, where it is installed."""
    found = list(entry_points(group="unerase.server", name=name))
    missing = ""
    try:
        loaded: Any = found[0].load() if found else None
    except ModuleNotFoundError as error:
        # The package is there without the extra: this names what the extra would have brought.
        loaded, missing = None, f" ({error.name} is missing)"
    if loaded is None:
        _fail(f"the backend is not installed{missing}; install it with: pip install 'unerase[server]'", BAD_INPUT)
    return loaded


def _client(address: str) -> Client:
    try:
        return Client(address, settings=settings_from_environment())
    except ValueError as error:
        _fail(str(error), BAD_INPUT)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error of the wire into lines on stderr and an exit code."""
    try:
        yield
    except UneraseError as error:
        lines = [f"{violation.field}: {violation.description}" for violation in error.violations] or [error.message]
        # A backend that answers gives a reason; gRPC's own error bears the name of its code.
        if error.reason == grpc.StatusCode.UNAVAILABLE.name:
            lines.append("No backend answers there: start one with `unerase serve`, or name another with --address.")
        _fail("\n".join(lines), _EXIT_CODES.get(error.code, 1))
    except BrokenPipeError:
        # Whoever reads our output has seen enough; click ends without a word.
        raise
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)


def _fail(message: str, code: int) -> NoReturn:
    _stderr.print(Text(message, style="red"))
    raise typer.Exit(code)


def _show_ended(ended: Audit, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_plain(ended)))
    elif ended.state == AuditState.AUDIT_STATE_SUCCEEDED:
        show_verdict(_stdout, ended)
    if ended.state != AuditState.AUDIT_STATE_SUCCEEDED:
        _fail(f"the audit {ended.id} is {state_name(ended)} {ended.error_reason} {ended.error_message}", AUDIT_FAILED)


def _audit_row(row: Audit) -> list[str]:
    return [row.id, row.spec.subject, row.spec.concept, state_name(row)]


def _list(rows: Any, columns: list[str], cells: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_plain(row) for row in rows]))
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*cells(row))
    _stdout.print(table)


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
