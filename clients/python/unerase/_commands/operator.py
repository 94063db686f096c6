"""What an operator does: `serve`, `health`, `info`, `tokens` and `deploy`."""

from pathlib import Path
from typing import Annotated

import typer

from unerase._commands.backend import of_the_backend, of_the_operator
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail
from unerase._commands.options import Address, AsJson, finite, seconds
from unerase._commands.output import plain_table, say, say_json, stdout
from unerase._display import local_time
from unerase._settings import DEFAULT_ADDRESS

tokens_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
deploy_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

SERVE_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of the command `serve`, whose arguments are the backend's to read."""


def serve(context: typer.Context) -> None:
    """Run the backend on this machine until it is told to stop."""
    main = of_the_backend("serve")
    with of_the_operator():
        main(context.args)


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


def info(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Show what the backend is: version, features, limits, and from where it takes models and webhooks."""
    with connected(address) as client:
        found = client.server_info()
    if as_json:
        say_json(found)
        return
    table = plain_table("", "")
    for name, values in (
        ("version", [found.version]),
        ("contract", [str(found.contract)]),
        ("time", [local_time(found.time)]),
        ("evaluations", found.evaluations),
        ("features", found.features),
        ("model roots", found.model_roots),
        ("organisations", found.model_organisations),
        ("webhook hosts", found.webhook_hosts),
        *((f"limit of {name}", [f"{found.limits[name]:,}"]) for name in sorted(found.limits)),
    ):
        if values:
            table.add_row(name, ", ".join(values))
    table.show_header = False
    stdout.print(table)


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
