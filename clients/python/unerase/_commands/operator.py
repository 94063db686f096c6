"""What an operator does: `serve`, `health`, `tokens` and `deploy`."""

from pathlib import Path
from typing import Annotated

import typer

from unerase._commands.backend import of_the_backend, of_the_operator
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail
from unerase._commands.options import Address, data_folder, finite, seconds
from unerase._commands.output import plain_table, say, stdout
from unerase._settings import DEFAULT_ADDRESS

tokens_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
deploy_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

PORTS = 65535


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless given.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 50051 unless given, 0 takes a free one.", min=0, max=PORTS)
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics; 0 takes a free one.", min=0, max=PORTS)
    ] = None,
    rooms_metrics_port: Annotated[
        int | None,
        typer.Option(help="Port where Ray serves the rooms' metrics; a free one unless given.", min=0, max=PORTS),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of databases, artefacts and logs.", callback=data_folder),
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL of the artefacts; in the data folder unless given.")
    ] = None,
    catalogue: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Catalogue file; may be repeated.")
    ] = None,
    generation_replicas: Annotated[
        int | None, typer.Option(help="Processes that make pictures.", min=1, max=1024)
    ] = None,
    allow_insecure_bind: Annotated[
        bool | None, typer.Option("--allow-insecure-bind", help="Listen beyond loopback without TLS and tokens.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file of the server's certificate chain.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file of its key.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="PEM file of authorities: clients need a certificate of theirs."
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File of tokens, as `unerase tokens` writes it."),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="Form of the logs: text, unless given, or json.")] = None,
    trace_endpoint: Annotated[
        str | None, typer.Option(help="OTLP receiver of traces, as http://127.0.0.1:4317; none unless given.")
    ] = None,
) -> None:
    """Run the backend on this machine until it is told to stop."""
    run = of_the_backend("serve")
    with of_the_operator():
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


def health(
    service: Annotated[str, typer.Argument(help="A service's full name; the backend as a whole unless given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", callback=seconds)] = 5.0,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Ask whether the backend serves: exit code 0 if it does, 1 if it drains or a room is down, 4 if none answers."""
    with connected(address) as client:
        if not client.serving(service, timeout=timeout):
            fail(f"{service or 'the backend'} is not serving", ExitCode.UNEXPECTED)
        say("serving")


TokenFile = Annotated[
    Path, typer.Option("--file", dir_okay=False, help="The file that `unerase serve --tokens` reads.")
]


@tokens_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="The token's name in the list.")],
    file: TokenFile,
    tenant: Annotated[str, typer.Option(help="Tenant whose audits the bearer sees; lower-case letters, digits and -.")],
    scope: Annotated[list[str], typer.Option(help="What it allows, such as audit:read; may be repeated.")],
    days: Annotated[float, typer.Option(help="Days until it expires.", callback=finite)] = 90.0,
) -> None:
    """Add a token to the file and print it. It is shown only once: the file holds its hash."""
    with of_the_operator():
        say(of_the_backend("tokens").create(file, name, tenant, scope, days))


@tokens_app.command("list")
def list_tokens(file: TokenFile) -> None:
    """List the tokens of the file."""
    with of_the_operator():
        table = plain_table("name", "tenant", "scopes", "expires")
        for entry in of_the_backend("tokens").listed(file):
            table.add_row(entry.id, entry.tenant, " ".join(entry.scopes), entry.expires.isoformat(timespec="seconds"))
        stdout.print(table)


@tokens_app.command("revoke")
def revoke_token(name: Annotated[str, typer.Argument(help="The token's name.")], file: TokenFile) -> None:
    """Remove a token from the file."""
    with of_the_operator():
        of_the_backend("tokens").revoke(file, name)


@deploy_app.callback()
def deploy() -> None:
    """Check the Serve configs that run the backend on a cluster."""


@deploy_app.command("check")
def check_deployment(
    files: Annotated[list[Path], typer.Argument(dir_okay=False, help="Serve configs, as `serve deploy` takes them.")],
) -> None:
    """Find unknown keys, wrong arguments and missing imports, which Serve ignores or finds only on the cluster."""
    check = of_the_backend("deploy")
    found = []
    with of_the_operator():
        for file in files:
            problems = check(file)
            found += [f"{file.name}: {problem}" for problem in problems]
            if not problems:
                say(f"{file.name}: right")
    if found:
        fail("\n".join(found), ExitCode.BAD_INPUT)
