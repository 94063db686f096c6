"""Campaigns, registered models and the backend's own word about itself, by both clients over a real socket."""

import warnings
from pathlib import Path

import grpc
import pyarrow
import pytest
from pyarrow import parquet

from support import scripted_campaigns
from support.scripted_campaigns import CAMPAIGN_EVENTS, CAMPAIGN_ID, CELLS, CONCEPTS, FORMS, SUBJECTS
from support.scripted_server import Script, failing, until_inactive
from unerase import (
    CONTRACT,
    AuditSpec,
    CampaignReportFormat,
    CampaignSpec,
    CampaignState,
    CellState,
    Change,
    Conclusion,
    Gate,
    GateOutcome,
    NewerContractWarning,
    RegistrationState,
    ServerInfo,
    UneraseError,
)
from unerase.v1.audits_pb2 import CreateAuditRequest, ListAuditsRequest
from unerase.v1.campaigns_pb2 import (
    CreateCampaignRequest,
    EvaluateGateRequest,
    GetCampaignReportRequest,
    ListCampaignsRequest,
    ListCellsRequest,
    RetryCampaignRequest,
    WatchCampaignRequest,
)
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.models_pb2 import ImportStatusRequest, ListModelsRequest, RegisterModelRequest
from unerase.v1.server_pb2 import GetServerInfoRequest

SPEC = CampaignSpec(subjects=SUBJECTS, concepts=CONCEPTS)
UNAVAILABLE = failing(grpc.StatusCode.UNAVAILABLE, "gone for the moment")


def test_a_campaign_from_beginning_to_end(connect, address: str, script: Script) -> None:
    events = []
    with connect(address) as client:
        campaign = client.campaign(SPEC, labels={"release": "2026-12"}, on_event=events.append)
        cells = list(client.cells(CAMPAIGN_ID))
    assert campaign.state == CampaignState.CAMPAIGN_STATE_SUCCEEDED
    assert [event.sequence for event in events] == list(range(1, CAMPAIGN_EVENTS + 1))
    assert [(each.subject, each.concept) for each in cells] == CELLS
    assert cells[-1].state == CellState.CELL_STATE_FAILED
    (request,) = script.seen(CreateCampaignRequest)
    assert (request.spec, dict(request.labels)) == (SPEC, {"release": "2026-12"})
    assert 1 <= len(request.request_id) <= 64


def test_a_campaign_is_created_once_however_often_it_is_asked_for(connect, address: str, script: Script) -> None:
    script.failures["CreateCampaign"] = [UNAVAILABLE, UNAVAILABLE]
    with connect(address) as client:
        client.create_campaign(SPEC)
    requests = script.seen(CreateCampaignRequest)
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_watch_of_a_campaign_resumes_where_it_broke(connect, address: str, script: Script, code) -> None:
    script.breaks, script.repeated, script.after_break = [2, 0, 3], 1, failing(code)
    with connect(address) as client:
        events = list(client.watch_campaign(CAMPAIGN_ID))
    assert [event.sequence for event in events] == list(range(1, CAMPAIGN_EVENTS + 1))
    assert [request.after_sequence for request in script.seen(WatchCampaignRequest)] == [0, 2, 2, 5]


def test_nothing_comes_after_the_end_of_a_campaign(connect, address: str) -> None:
    with connect(address) as client:
        assert list(client.watch_campaign(CAMPAIGN_ID, CAMPAIGN_EVENTS)) == []


def test_a_gap_in_a_campaign_is_an_error(connect, address: str, script: Script) -> None:
    script.skipped = 2
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        list(client.watch_campaign(CAMPAIGN_ID))
    assert caught.value.reason == "EVENTS_MISSING"
    assert f"of campaign {CAMPAIGN_ID}" in caught.value.message


def test_a_campaign_that_does_not_end_in_time_says_so(connect, address: str, script: Script) -> None:
    script.breaks, script.after_break = [2], until_inactive
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.campaign(SPEC, timeout=0.4)
    assert (caught.value.reason, caught.value.metadata["campaign"]) == ("CAMPAIGN_NOT_IN_TIME", CAMPAIGN_ID)


def test_what_is_listed_may_be_filtered(connect, address: str, script: Script) -> None:
    with connect(address) as client:
        assert [each.id for each in client.campaigns(filter="state = FAILED", page_size=2)] == [
            f"c{index}" for index in range(5)
        ]
        list(client.cells(CAMPAIGN_ID, filter="conclusion = AVOIDED"))
        list(client.audits(filter='labels.team = "safety"', order_by="end_time desc"))
        client.models(filter="registered = true", order_by="name desc")
    # Every page is asked for with the same filter.
    assert {each.filter for each in script.seen(ListCampaignsRequest)} == {"state = FAILED"}
    assert [each.page_token for each in script.seen(ListCampaignsRequest)] == ["", "2", "4"]
    assert {(each.id, each.filter) for each in script.seen(ListCellsRequest)} == {(CAMPAIGN_ID, "conclusion = AVOIDED")}
    assert {(each.filter, each.order_by) for each in script.seen(ListAuditsRequest)} == {
        ('labels.team = "safety"', "end_time desc")
    }
    assert {(each.filter, each.order_by) for each in script.seen(ListModelsRequest)} == {
        ("registered = true", "name desc")
    }


def test_an_audit_has_labels(connect, address: str, script: Script) -> None:
    with connect(address) as client:
        client.audit(AuditSpec(subject="testbed/uce", concept="hourglass"), labels={"team": "safety"})
    (request,) = script.seen(CreateAuditRequest)
    assert dict(request.labels) == {"team": "safety"}


def test_a_campaign_is_cancelled_retried_and_deleted(connect, address: str, script: Script) -> None:
    with connect(address) as client:
        assert client.cancel_campaign(CAMPAIGN_ID).state == CampaignState.CAMPAIGN_STATE_CANCELLED
        assert client.retry_campaign(CAMPAIGN_ID).state == CampaignState.CAMPAIGN_STATE_RUNNING
        assert client.delete_campaign(CAMPAIGN_ID) is None
        # A second one would find a campaign that has not ended.
        script.failures["RetryCampaign"] = [UNAVAILABLE]
        with pytest.raises(UneraseError):
            client.retry_campaign(CAMPAIGN_ID)
    assert len(script.seen(RetryCampaignRequest)) == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_report_is_saved_in_every_form(connect, address: str, script: Script, tmp_path: Path, form) -> None:
    """It breaks twice: the file is whole, and holds nothing of the first attempts."""
    content, media_type = FORMS[form]
    file = tmp_path / "report"
    file.write_bytes(b"the report before")
    script.report_breaks = 2 if len(content) > 32 else 0
    with connect(address) as client:
        assert client.save_campaign_report(CAMPAIGN_ID, file, form) == media_type
        assert client.campaign_report(CAMPAIGN_ID, form) == content
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]
    assert {each.format for each in script.seen(GetCampaignReportRequest)} == {form}


def test_a_report_that_does_not_come_whole_replaces_nothing(
    connect, address: str, script: Script, tmp_path: Path
) -> None:
    file = tmp_path / "report"
    file.write_bytes(b"the report before")
    script.truncate = True
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.save_campaign_report(CAMPAIGN_ID, file)
    assert caught.value.reason == "TRANSFER_INCOMPLETE"
    assert file.read_bytes() == b"the report before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_report_that_cannot_be_written_is_an_error_of_the_file(connect, address: str, tmp_path: Path) -> None:
    with connect(address) as client, pytest.raises(FileNotFoundError) as caught:
        client.save_campaign_report(CAMPAIGN_ID, tmp_path / "missing" / "report.html")
    assert caught.value.filename == str(tmp_path / "missing" / "report.html")


def test_a_report_as_a_dictionary_and_as_a_table(connect, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pyarrow.table({"cell": [0, 1], "subject": ["testbed/uce", "testbed/esd-x"]})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    form = CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_PARQUET
    monkeypatch.setitem(
        scripted_campaigns.FORMS, form, (sink.getvalue().to_pybytes(), "application/vnd.apache.parquet")
    )
    with connect(address) as client:
        assert client.campaign_table(CAMPAIGN_ID).equals(table)
        assert client.campaign_report_json(CAMPAIGN_ID)["campaignId"] == CAMPAIGN_ID


def test_two_audits_and_two_campaigns_are_compared(connect, address: str, script: Script) -> None:
    said = script.campaign
    said.audits_compared.change = Change.CHANGE_WORSE
    for index, change in enumerate((Change.CHANGE_SAME, Change.CHANGE_BETTER)):
        said.compared.append(CellComparison(cell=index))
        said.compared[-1].audits.change = change
    said.whole.better = said.whole.same = 1
    with connect(address) as client:
        assert client.compare_audits("a1", "a2").change == Change.CHANGE_WORSE
        whole, cells = client.compare_campaigns("c1", "c2")
        assert (whole.better, [each.cell for each in cells]) == (1, [0, 1])
        _, changed = client.compare_campaigns("c1", "c2", changed_only=True)
        assert [each.cell for each in changed] == [1]
        script.truncate = True
        for incomplete in (client.compare_audits, client.compare_campaigns):
            with pytest.raises(UneraseError) as caught:
                incomplete("c1", "c2")
            assert caught.value.reason == "TRANSFER_INCOMPLETE"


def test_a_gate_is_the_campaigns_own_or_another(connect, address: str, script: Script) -> None:
    gate = Gate(worst_conclusion=Conclusion.CONCLUSION_REMOVED, excess=0.1)
    with connect(address) as client:
        assert client.evaluate_gate(CAMPAIGN_ID).outcome == GateOutcome.GATE_OUTCOME_PASS
        client.evaluate_gate(CAMPAIGN_ID, gate)
    own, other = script.seen(EvaluateGateRequest)
    assert not own.HasField("gate")
    assert other.gate == gate


def test_a_model_is_registered_once_it_was_checked(connect, address: str, script: Script) -> None:
    entry = {"base": "testbed/reference", "unet": "/models/edited/unet.safetensors", "guards": [{"kind": "x"}]}
    with connect(address) as client:
        registration = client.register_model("acme/edited", entry, labels={"release": "1"}, request_id="mine")
        assert registration.state == RegistrationState.REGISTRATION_STATE_REGISTERED
        assert registration.model.registered
        script.campaign.checking = 1
        begun = client.register_model("acme/edited", entry, wait=False)
        assert begun.state == RegistrationState.REGISTRATION_STATE_CHECKING
        assert client.import_status("acme/edited").state == RegistrationState.REGISTRATION_STATE_REGISTERED
        assert client.delete_model("acme/edited") is None
    first, _ = script.seen(RegisterModelRequest)
    assert (first.request_id, first.model.name, dict(first.model.labels)) == ("mine", "acme/edited", {"release": "1"})
    assert first.model.entry["unet"] == "/models/edited/unet.safetensors"
    assert first.model.entry["guards"][0]["kind"] == "x"
    assert len(script.seen(ImportStatusRequest)) == 3


def test_a_model_that_is_refused_is_returned_with_the_reason(connect, address: str, script: Script) -> None:
    script.campaign.registered.state = RegistrationState.REGISTRATION_STATE_REFUSED
    script.campaign.registered.error_reason = "UNSAFE_MODEL"
    with connect(address) as client:
        refused = client.register_model("acme/edited", {"pipeline": "/models/edited"})
    assert refused.state == RegistrationState.REGISTRATION_STATE_REFUSED
    assert refused.error_reason == "UNSAFE_MODEL"


def test_a_check_that_takes_too_long_says_so(connect, address: str, script: Script) -> None:
    script.campaign.checking = 1000
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.register_model("acme/edited", {}, timeout=0.5)
    assert caught.value.reason == "MODEL_NOT_IN_TIME"


def test_an_entry_that_cannot_be_sent_is_refused(connect, address: str, script: Script) -> None:
    with connect(address) as client:
        for value in (object(), {1, 2}, float("nan")):
            with pytest.raises(UneraseError) as caught:
                client.register_model("acme/edited", {"pipeline": value})
            assert caught.value.violations[0].field == "model.entry"
    assert not script.seen(RegisterModelRequest)


def test_a_newer_backend_is_warned_of_once(connect, address: str, script: Script) -> None:
    script.campaign.info = ServerInfo(version="9.9", contract=CONTRACT + 1)
    with connect(address) as client:
        with pytest.warns(NewerContractWarning, match=r"unerase 9\.9"):
            client.create_campaign(SPEC)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.create_campaign(SPEC)
            assert client.server_info().version == "9.9"
    assert len(script.seen(GetServerInfoRequest)) == 2


@pytest.mark.parametrize("info", [None, ServerInfo(contract=CONTRACT), ServerInfo(contract=CONTRACT - 1)])
def test_a_backend_of_this_version_or_an_older_one_is_no_news(
    connect, address: str, script: Script, info: ServerInfo | None
) -> None:
    script.campaign.info = info
    with connect(address) as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        client.create_campaign(SPEC)
