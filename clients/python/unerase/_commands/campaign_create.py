"""A campaign from its request to its end: `campaign create` and `campaign watch`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from unerase._campaign_display import LiveCampaign, campaign_state, counted, show_matrix
from unerase._campaign_file import CampaignFile, read_campaign
from unerase._client import Client
from unerase._commands.campaign_results import (
    CellsCsv,
    CellsParquet,
    Outputs,
    PageFile,
    WholeJson,
    WholeObservations,
    exit_code_of,
    write_outputs,
)
from unerase._commands.connecting import connected, connected_or_started
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.following import goes_on, how_to_go_on, may_be_lost
from unerase._commands.options import (
    UINT64,
    Address,
    AsJson,
    DataDir,
    LabelOption,
    RequestId,
    Timeout,
    WebhookOption,
    check_data_dir,
    labels_of,
)
from unerase._commands.output import as_json as json_line
from unerase._commands.output import say, say_json, stderr, stdout, tell
from unerase._comparison_display import show_gate
from unerase._counting import count_of
from unerase._display import show_cost
from unerase._gate_file import read_gate
from unerase._repeating import new_id
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.campaigns_pb2 import Campaign, CampaignState

GROUP = "campaign"

CampaignId = Annotated[str, typer.Argument(help="The campaign's id.")]
GateFile = Annotated[
    Path | None, typer.Option("--gate", dir_okay=False, help="Gate file, in place of the campaign's own gate.")
]


def create(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="YAML file: subjects, concepts, audit, gate, labels.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the campaign to its end, and hold it against its gate.")
    ] = False,
    gate: GateFile = None,
    compared_with: Annotated[
        str, typer.Option(help="Id of an earlier campaign: the same seeds, and what changed stands in the report.")
    ] = "",
    html: PageFile = None,
    json_file: WholeJson = None,
    cells_csv: CellsCsv = None,
    cells_parquet: CellsParquet = None,
    observations: WholeObservations = None,
    local: Annotated[
        bool, typer.Option("--local", help="With --wait: start a backend for this campaign, and end it afterwards.")
    ] = False,
    data_dir: DataDir = None,
    label: LabelOption = None,
    request_id: RequestId = None,
    webhook: WebhookOption = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan the campaign and print what it would take, without running it.")
    ] = False,
    timeout: Timeout = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Audit many models against many concepts, as a YAML file says.

    With --wait, the exit code is the gate's: 0 pass, 5 fail, 6 undecided. Without a gate it is 0 if every cell has a
    verdict.
    """
    outputs = Outputs(html, json_file, cells_csv, cells_parquet, observations)
    _refuse_contradictions(outputs, wait, dry_run, local, data_dir)
    described = _described(file, gate, compared_with)
    labels = {**described.labels, **labels_of(label)}
    with connected_or_started(address, local, data_dir) as client:
        chosen = new_id(request_id)
        if dry_run:
            planned = client.create_campaign(described.spec, labels=labels, webhook=webhook, validate_only=True)
            _show_plan(planned, as_json)
            return
        with may_be_lost(GROUP, chosen):
            accepted = client.create_campaign(described.spec, labels=labels, request_id=chosen, webhook=webhook)
        if not wait:
            say_json(accepted) if as_json else say(accepted.id)
            return
        how = how_to_go_on(accepted.id, local, data_dir, GROUP)
        with goes_on(how, GROUP):
            _announce(accepted, how, as_json)
            ended = _follow(client, accepted.id, timeout, as_json)
        if ended.state == CampaignState.CAMPAIGN_STATE_SUCCEEDED:
            write_outputs(client, ended.id, outputs)
        show_ended(client, ended, as_json)


def watch(
    campaign_id: CampaignId,
    after: Annotated[
        int, typer.Option(help="With --json: the last sequence number already seen.", min=0, max=UINT64)
    ] = 0,
    timeout: Timeout = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Follow a campaign to its end, then show its cells; the exit code is that of `campaign create --wait`.

    With --json it prints one event a line.
    """
    if after and not as_json:
        fail("--after needs --json, which prints the events themselves", ExitCode.BAD_INPUT)
    with connected(address) as client:
        with goes_on(how_to_go_on(campaign_id, group=GROUP), GROUP):
            if as_json:
                for event in client.watch_campaign(campaign_id, after, timeout=timeout):
                    say_json(event)
                ended = client.get_campaign(campaign_id)
            else:
                ended = _follow(client, campaign_id, timeout, as_json)
        if as_json:
            _end(ended)
        else:
            show_ended(client, ended, as_json)


def show_ended(client: Client, ended: Campaign, in_json: bool) -> None:
    """Show how a campaign ended, and end the command with its exit code."""
    if in_json:
        say_json(ended)
    else:
        show_campaign(client, ended)
    _end(ended)


def show_campaign(client: Client, campaign: Campaign) -> None:
    """Print a campaign: its state, its cells as a matrix, and what its gate says."""
    labels = "".join(f"  {key}={campaign.labels[key]}" for key in sorted(campaign.labels))
    say(f"campaign {campaign.id}: {campaign_state(campaign)}{labels}")
    say(f"{count_of(campaign.cells_total, 'cell')}: {counted(campaign)}")
    if campaign.HasField("delayed"):
        say(f"it waits: {campaign.delayed.message}")
    show_matrix(stdout, campaign.cells_total, lambda: client.cells(campaign.id))
    if campaign.HasField("gate_result"):
        show_gate(stdout, campaign.gate_result)


def _follow(client: Client, campaign_id: str, timeout: float | None, as_json: bool) -> Campaign:
    with LiveCampaign(stderr, hidden=as_json and not stderr.is_terminal) as progress:
        for event in client.watch_campaign(campaign_id, timeout=timeout):
            progress.show(event)
    return client.get_campaign(campaign_id)


def _end(ended: Campaign) -> None:
    """End the command as the campaign ended."""
    if ended.state != CampaignState.CAMPAIGN_STATE_SUCCEEDED:
        reason = f"{ended.error_reason} {ended.error_message}".strip()
        fail(f"campaign {ended.id}: {campaign_state(ended)} {reason}".rstrip(), ExitCode.AUDIT_FAILED)
    if ended.HasField("gate_result"):
        code = exit_code_of(ended.gate_result)
        if code:
            raise typer.Exit(int(code))
    elif ended.cells.failed or ended.cells.cancelled:
        without = ended.cells.failed + ended.cells.cancelled
        has, them = ("has", "it") if without == 1 else ("have", "them")
        fail(
            f"{without} of {count_of(ended.cells_total, 'cell')} {has} no verdict: `unerase campaign cells {ended.id}` "
            f"says why, `unerase campaign retry {ended.id}` runs {them} again",
            ExitCode.AUDIT_FAILED,
        )


def _described(file: Path, gate: Path | None, compared_with: str) -> CampaignFile:
    """Return what the files ask for."""
    with reported():
        try:
            described = read_campaign(file)
            if gate is not None:
                if described.spec.HasField("gate"):
                    tell(f"--gate: {gate} replaces the gate of {file}")
                described.spec.gate.CopyFrom(read_gate(gate))
        except ValueError as error:
            fail(str(error), ExitCode.BAD_INPUT)
    if compared_with:
        described.spec.compared_with = compared_with
    return described


def _announce(accepted: Campaign, how: str, in_json: bool) -> None:
    if in_json:
        print(json_line({"id": accepted.id, "request_id": accepted.request_id}), file=sys.stderr, flush=True)
    else:
        tell(f"campaign {accepted.id} is accepted, with {count_of(accepted.cells_total, 'cell')}. {how}")


def _show_plan(planned: Campaign, as_json: bool) -> None:
    if as_json:
        say_json(planned)
        return
    spec = planned.spec
    models, concepts = count_of(len(spec.subjects), "model"), count_of(len(spec.concepts), "concept")
    say(f"{count_of(planned.cells_total, 'cell')}: {models} x {concepts}")
    show_cost(stdout, planned.cost, GROUP)


def _refuse_contradictions(outputs: Outputs, wait: bool, dry_run: bool, local: bool, data_dir: Path | None) -> None:
    if not wait and outputs.any():
        fail("--html and the other files need --wait: there is no report before the campaign's end", ExitCode.BAD_INPUT)
    if wait and dry_run:
        fail("--wait: cannot be combined with --dry-run, which runs no campaign", ExitCode.BAD_INPUT)
    if local and not (wait or dry_run):
        fail("--local needs --wait: the backend ends with this command", ExitCode.BAD_INPUT)
    check_data_dir(data_dir, local)
    outputs.check()
