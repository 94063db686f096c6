"""What a campaign says: `campaign report`, `campaign compare`, `campaign gate` and `compare`."""

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated

import typer

from unerase._client import Client
from unerase._commands.backend import of_the_backend
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.options import Address, AsJson, different, output_file
from unerase._commands.output import say_json, stdout, tell
from unerase._comparison_display import show_audits_compared, show_campaigns_compared, show_gate
from unerase._errors import UneraseError
from unerase._gate_file import read_gate
from unerase._settings import DEFAULT_ADDRESS
from unerase._visible import visible
from unerase.v1.campaigns_pb2 import CampaignReportFormat
from unerase.v1.comparisons_pb2 import AuditComparison
from unerase.v1.gates_pb2 import Gate, GateOutcome, GateResult

_EXPORT = ".parquet"

TRANSFER_SECONDS = 3600.0
"""How long one form of the report of a large campaign may take."""


def _output(says: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(dir_okay=False, help=says, callback=output_file)
    return option


PageFile = Annotated[
    Path | None, _output("Write the report as one HTML file here; more than 2,000 cells come as a ZIP file of pages.")
]
WholeJson = Annotated[Path | None, _output("Write the report as JSON here.")]
CellsCsv = Annotated[Path | None, _output("Write the cells here, a row for each cell and evaluation.")]
CellsParquet = Annotated[Path | None, _output("Write the cells as Parquet here.")]
WholeObservations = Annotated[Path | None, _output("Write all observations of all cells as Parquet here.")]


@dataclass(frozen=True)
class Outputs:
    """The files that a campaign's report is written to."""

    html: Path | None
    json_file: Path | None
    cells_csv: Path | None
    cells_parquet: Path | None
    observations: Path | None

    def any(self) -> bool:
        """Say whether a file is asked for."""
        return any(file is not None for file in astuple(self))

    def check(self) -> None:
        """Refuse two outputs that are one file."""
        different(astuple(self))


def write_outputs(client: Client, campaign_id: str, outputs: Outputs) -> None:
    """Write the forms of a campaign's report that are asked for.

    Raises:
        UneraseError: the backend does not give one.
        OSError: a file cannot be written.
    """
    for file, form in (
        (outputs.html, CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_HTML),
        (outputs.json_file, CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_JSON),
        (outputs.cells_csv, CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_CSV),
        (outputs.cells_parquet, CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_PARQUET),
        (outputs.observations, CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_OBSERVATIONS_PARQUET),
    ):
        if file is None:
            continue
        try:
            media_type = client.save_campaign_report(campaign_id, file, form, timeout=TRANSFER_SECONDS)
        except (UneraseError, OSError) as error:
            if getattr(error, "reason", "") != "CAMPAIGN_NOT_FOUND":
                command = f"unerase campaign report {visible(campaign_id)}"
                error.add_note(f"The campaign is kept: `{command}` writes its report again.")
            raise
        pages = ", a ZIP file of pages: begin with index.html" if media_type == "application/zip" else ""
        tell(f"report: {file}{pages}")


def exit_code_of(result: GateResult) -> ExitCode | None:
    """Return the exit code of what a gate says; None if it passes."""
    if result.outcome == GateOutcome.GATE_OUTCOME_PASS:
        return None
    failed = result.outcome == GateOutcome.GATE_OUTCOME_FAIL
    return ExitCode.GATE_FAILED if failed else ExitCode.GATE_UNDECIDED


def hold(
    campaign_id: Annotated[str, typer.Argument(help="The campaign's id.")],
    gate: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Gate file, in place of the campaign's own gate.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Hold a campaign that has ended against a gate: exit code 0 pass, 5 fail, 6 undecided."""
    asked: Gate | None = None
    if gate is not None:
        with reported():
            try:
                asked = read_gate(gate)
            except ValueError as error:
                fail(str(error), ExitCode.BAD_INPUT)
    with connected(address) as client:
        result = client.evaluate_gate(campaign_id, asked)
    if as_json:
        say_json(result)
    else:
        show_gate(stdout, result)
    code = exit_code_of(result)
    if code:
        raise typer.Exit(int(code))


def compare_campaigns(
    first: Annotated[str, typer.Argument(help="Id of the earlier campaign.")],
    second: Annotated[str, typer.Argument(help="Id of the later campaign.")],
    everything: Annotated[bool, typer.Option("--all", help="Also the cells in which nothing changed.")] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Say what became better or worse from one campaign to another, cell by cell."""
    with connected(address) as client:
        whole, cells = client.compare_campaigns(first, second, changed_only=not everything, timeout=TRANSFER_SECONDS)
    if as_json:
        for cell in cells:
            say_json(cell)
        say_json(whole)
    else:
        show_campaigns_compared(stdout, whole, cells, everything=everything)


def compare_audits(
    first: Annotated[str, typer.Argument(help="Id of the earlier audit, or a Parquet file of its observations.")],
    second: Annotated[str, typer.Argument(help="Id of the later audit, or such a file.")],
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Say what became better or worse from one audit to another, of the same concept, cases and seeds.

    Two files, as `unerase report ID --parquet FILE` writes them, are compared without a backend.
    """
    exported = [each.endswith(_EXPORT) for each in (first, second)]
    if any(exported) and not all(exported):
        raise typer.BadParameter("an audit and a file cannot be compared; give two ids or two Parquet files")
    if all(exported):
        found = _compared_files(Path(first), Path(second))
    else:
        with connected(address) as client:
            found = client.compare_audits(first, second)
    if as_json:
        say_json(found)
    else:
        show_audits_compared(stdout, found)


def _compared_files(first: Path, second: Path) -> AuditComparison:
    compare = of_the_backend("compare")
    try:
        with reported():
            found: AuditComparison = compare(first, second)
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)
    return found
