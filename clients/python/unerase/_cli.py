"""The command `unerase`.

Exit codes: 0 the audit ended with a verdict, or the gate passes; 1 something unexpected; 2 bad input, or a limit; 3 the
audit failed or was cancelled; 4 no backend answers; 5 the gate fails; 6 the gate is undecided; 124 `--timeout` is over;
130 Ctrl-C. docs/client.md has the whole table.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from unerase._commands import (
    auditing,
    audits,
    backbones,
    calibrating,
    campaign_results,
    campaigns,
    catalogue,
    checking,
    estimating,
    exporting,
    importing,
    models,
    operator,
)
from unerase._commands.output import say

app = typer.Typer(
    help="Tells whether a concept was really erased from a text-to-image model, or only hidden.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal's encoding lacks appear as escapes instead of ending the command.
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
app.command()(checking.check)
app.command()(auditing.audit)
app.command()(audits.watch)
app.command()(audits.report)
app.command()(audits.verdict)
app.command()(calibrating.calibrate)
app.command()(estimating.power)
app.command()(audits.audits)
app.command()(audits.cancel)
app.command()(audits.delete)
app.command("compare")(campaign_results.compare_audits)
app.add_typer(
    campaigns.campaign_app, name="campaign", help="Audit many models against many concepts; hold them to a gate."
)
app.add_typer(models.models_app, name="models")
app.add_typer(exporting.export_app, name="export", help="Write a report for other programs.")
app.command("import")(importing.import_weights)
app.command()(operator.health)
app.command()(operator.info)
app.command()(backbones.backbones)
app.command()(catalogue.evaluations)
app.command()(catalogue.presets)
app.add_typer(operator.tokens_app, name="tokens", help="Create, list and revoke the tokens that a backend asks for.")
app.add_typer(operator.deploy_app, name="deploy", help="Check the Serve configs that run the backend on a cluster.")
app.add_typer(catalogue.concepts_app, name="concepts")
