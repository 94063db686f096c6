"""Campaigns: `campaign` with its commands."""

from typing import Annotated

import typer

from unerase._campaign_display import campaign_state, conclusion_word, counted
from unerase._commands import campaign_create, campaign_results
from unerase._commands.campaign_create import CampaignId, show_campaign
from unerase._commands.campaign_results import (
    TRANSFER_SECONDS,
    CellsCsv,
    CellsParquet,
    Outputs,
    PageFile,
    WholeJson,
    WholeObservations,
    write_outputs,
)
from unerase._commands.changing import as_it_was, cancelled_line, retried_line
from unerase._commands.connecting import connected
from unerase._commands.options import Address, AsJson, FilterOption
from unerase._commands.output import say, say_json, show_list
from unerase._display import enum_name, local_time
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.campaigns_pb2 import Campaign, Cell, CellState

campaign_app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

campaign_app.command("create")(campaign_create.create)
campaign_app.command("watch")(campaign_create.watch)
campaign_app.command("compare")(campaign_results.compare_campaigns)
campaign_app.command("gate")(campaign_results.hold)


@campaign_app.command("show")
def show(campaign_id: CampaignId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Show a campaign as it is now: its cells as a matrix, and what its gate says."""
    with connected(address) as client:
        campaign = client.get_campaign(campaign_id)
        if as_json:
            say_json(campaign)
        else:
            show_campaign(client, campaign)


@campaign_app.command("list")
def list_campaigns(
    filter: FilterOption = "",
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids alone, one a line.")] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """List the campaigns, newest first."""
    with connected(address) as client:
        rows = list(client.campaigns(filter=filter))
    if ids and not as_json:
        for row in rows:
            say(row.id)
        return
    show_list(rows, ["id", "created", "state", "cells", "labels"], _row, as_json)


@campaign_app.command("cells")
def list_cells(
    campaign_id: CampaignId, filter: FilterOption = "", address: Address = DEFAULT_ADDRESS, as_json: AsJson = False
) -> None:
    """List the cells of a campaign, with their audits and why some failed."""
    with connected(address) as client:
        rows = list(client.cells(campaign_id, filter=filter))
    show_list(rows, ["cell", "model", "concept", "state", "conclusion", "audit", "problem"], _cell_row, as_json)


@campaign_app.command("report")
def report(
    campaign_id: CampaignId,
    html: PageFile = None,
    json_file: WholeJson = None,
    cells_csv: CellsCsv = None,
    cells_parquet: CellsParquet = None,
    observations: WholeObservations = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write a campaign's report, or show the campaign."""
    outputs = Outputs(html, json_file, cells_csv, cells_parquet, observations)
    outputs.check()
    with connected(address) as client:
        write_outputs(client, campaign_id, outputs)
        if as_json:
            say_json(client.campaign_report_json(campaign_id, timeout=TRANSFER_SECONDS))
        elif not outputs.any():
            show_campaign(client, client.get_campaign(campaign_id))


@campaign_app.command("cancel")
def cancel(campaign_id: CampaignId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Cancel a campaign with its audits in flight; one that has ended stays as it is."""
    with connected(address) as client:
        before = as_it_was(lambda: client.get_campaign(campaign_id))
        cancelled = client.cancel_campaign(campaign_id)
    known = campaign_state(before) if before else ""
    line = cancelled_line(f"campaign {campaign_id}", known, campaign_state(cancelled))
    say_json(cancelled) if as_json else say(line)


@campaign_app.command("retry")
def retry(campaign_id: CampaignId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Run the failed and cancelled cells of a campaign that has ended again."""
    with connected(address) as client:
        before = as_it_was(lambda: client.get_campaign(campaign_id))
        retried = client.retry_campaign(campaign_id)
    known = campaign_state(before) if before else ""
    line = retried_line(f"campaign {campaign_id}", known, campaign_state(retried))
    say_json(retried) if as_json else say(line)


@campaign_app.command("delete")
def delete(campaign_id: CampaignId, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Delete a campaign that has ended, with its audits, their reports and pictures."""
    with connected(address) as client:
        client.delete_campaign(campaign_id)
    say_json({"deleted": campaign_id}) if as_json else say("deleted")


def _row(campaign: Campaign) -> list[str]:
    labels = ", ".join(f"{key}={campaign.labels[key]}" for key in sorted(campaign.labels))
    cells = f"{campaign.cells_total}: {counted(campaign)}"
    return [campaign.id, local_time(campaign.create_time), campaign_state(campaign), cells, labels]


def _cell_row(cell: Cell) -> list[str]:
    state = enum_name(CellState, cell.state, "CELL_STATE_")
    concluded = conclusion_word(cell.verdict) if cell.state == CellState.CELL_STATE_SUCCEEDED else ""
    problem = f"{cell.error_reason} {cell.error_message}".strip()
    return [str(cell.index), cell.subject, cell.concept, state, concluded, cell.audit, problem]
