"""What of a request for a campaign is refused, by its field; and what is hidden until the campaign has ended."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from support.errors_of import details_of
from support.simulated import say, simulated_coordinator, unsay, until
from unerase.v1 import audits_pb2, campaigns_pb2, comparisons_pb2
from unerase.v1.campaigns_pb2 import CAMPAIGN_STATE_UNSPECIFIED, CampaignSpec
from unerase_backend.coordinator.campaigns.request import resolve_campaign
from unerase_backend.runtime.errors import InvalidRequestError

from .simulation import EDITED, TEMPLATE, Backend, catalogue_of_many, spec_of

NOBODY = "0" * 32


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("creating")
    with simulated_coordinator(folder, catalogue_of_many(folder / "catalogue")) as running:
        yield Backend(folder, running)


def refused(backend: Backend, spec: CampaignSpec, **more: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as error:
        backend.create("refused", spec, **more)
    return error.value.code(), *details_of(error.value)


@pytest.mark.parametrize(
    ("spec", "reason", "field", "told"),
    [
        ({"concepts": ["hourglass"]}, "INVALID_REQUEST", "spec.subjects", "must name a model"),
        ({"subjects": ["small/edited"]}, "INVALID_REQUEST", "spec.concepts", "must name a concept"),
        ({"subjects": ["small/edit"]}, "MODEL_NOT_FOUND", "spec.subjects[0]", "did you mean 'small/edited'?"),
        ({"concepts": ["hourglas"]}, "CONCEPT_NOT_FOUND", "spec.concepts[0]", "did you mean 'hourglass'?"),
        ({"subjects": ["small/edited", "small/edited"]}, "INVALID_REQUEST", "spec.subjects[1]", "a second time"),
        ({"subjectFilter": "colour = 3"}, "FILTER_INVALID", "spec.subject_filter", "colour"),
        ({"subjectFilter": 'name = "x"', "subjects": []}, "INVALID_REQUEST", "spec.subject_filter", "no model"),
        ({"window": 1025}, "INVALID_REQUEST", "spec.window", "at most 1024"),
        ({"template": {"subject": "x"}}, "INVALID_REQUEST", "spec.template.subject", "spec.subjects"),
        ({"template": {"concept": "x"}}, "INVALID_REQUEST", "spec.template.concept", "spec.concepts"),
        ({"template": {"sequential": True}}, "INVALID_REQUEST", "spec.template.sequential", "spec.sequential"),
        ({"template": {"cases": 513}}, "INVALID_REQUEST", "spec.template.cases", "512"),
        ({"template": {"battery": {"evaluations": [{"name": "no"}]}}}, "EVALUATION_NOT_FOUND", "", "no"),
        ({"comparedWith": "first"}, "CAMPAIGN_NOT_FOUND", "spec.compared_with", "no campaign"),
        ({"comparedWith": NOBODY}, "CAMPAIGN_NOT_FOUND", "spec.compared_with", "no campaign"),
        ({"gate": {"noWorseThan": NOBODY}}, "CAMPAIGN_NOT_FOUND", "spec.gate.no_worse_than", "no campaign"),
        ({"gate": {}}, "INVALID_REQUEST", "spec.gate", "asks nothing"),
        ({"gate": {"excess": 0.1, "concepts": ["circle"]}}, "INVALID_REQUEST", "spec.gate.concepts[0]", "circle"),
        # A model that cannot be audited for the concept refuses a campaign in which there is no other.
        ({"subjects": ["large/reference"]}, "REFERENCE_MISSING", "spec.template.reference", "large/reference"),
    ],
)
def test_a_bad_field_is_named(backend: Backend, spec: dict[str, Any], reason: str, field: str, told: str) -> None:
    whole = {"subjects": ["small/edited"], "concepts": ["hourglass"], "template": TEMPLATE} | spec
    if field in ("spec.subjects", "spec.concepts"):
        del whole[field.removeprefix("spec.")]
    code, found, fields = refused(backend, json_format.ParseDict(whole, CampaignSpec()))
    assert (code, found) == (grpc.StatusCode.INVALID_ARGUMENT, reason), fields
    assert any(name == (field or name) and told in description for name, description in fields.items()), fields
    assert all(name.startswith("spec.") for name in fields)


def test_too_many_cells_are_refused() -> None:
    models, concepts = [f"model-{number}" for number in range(10_000)], [f"concept-{number}" for number in range(21)]
    whole = CampaignSpec(subjects=models, concepts=concepts[:20])
    assert resolve_campaign(whole, (), models, concepts, lambda: 3).template.seed_base == 3
    whole.concepts.append(concepts[20])
    with pytest.raises(InvalidRequestError) as refused:
        resolve_campaign(whole, (), models, concepts, lambda: 3)
    assert refused.value.reason == "CAMPAIGN_TOO_LARGE"
    (violation,) = refused.value.violations
    assert (violation.field, "210,000 cells" in violation.description) == ("spec.subjects", True)
    # Of many names that do not exist, some are named.
    with pytest.raises(InvalidRequestError) as unknown:
        resolve_campaign(whole, (), (), concepts, lambda: 3)
    assert 1 < len(unknown.value.violations) < 50


def test_a_bad_subject_among_good_ones_is_a_failed_cell(backend: Backend) -> None:
    campaign = backend.create("one-bad", spec_of(["large/reference", "small/edited"]))
    backend.watch(campaign.id)
    bad, good = backend.cells(campaign.id)
    assert (bad.error_reason != "", bad.audit, bad.attempts) == (True, "", 1)
    assert (good.error_reason, good.error_message, good.attempts) == ("", "", 1)


def test_the_same_request_is_the_same_campaign(backend: Backend) -> None:
    spec = spec_of(EDITED[:1])
    campaign = backend.create("again", spec, labels={"team": "a"})
    assert backend.create("again", spec, labels={"team": "a"}).id == campaign.id
    for other in (spec_of(EDITED[:2]), spec):
        with pytest.raises(grpc.RpcError) as reused:
            backend.create("again", other, labels={"team": "b"})
        assert reused.value.code() == grpc.StatusCode.ALREADY_EXISTS
        assert details_of(reused.value)[0] == "REQUEST_ID_REUSED"
    with pytest.raises(grpc.RpcError) as label:
        backend.create("label", spec, labels={"Team": "a"})
    assert list(details_of(label.value)[1]) == ["labels"]


def test_a_campaign_is_planned_without_being_accepted(backend: Backend) -> None:
    def ids() -> list[str]:
        listed = backend.call("Campaign", "ListCampaigns", campaigns_pb2.ListCampaignsRequest())
        return [campaign.id for campaign in listed.campaigns]

    before = ids()
    one = backend.create("", spec_of(EDITED[:1]), validate_only=True)
    planned = backend.create("", spec_of(EDITED[:3], ["hourglass", "circle"]), validate_only=True)
    assert (planned.id, planned.state, planned.cells_total) == ("", CAMPAIGN_STATE_UNSPECIFIED, 6)
    assert not planned.spec.template.HasField("seed_base")
    assert planned.cost.pictures >= 6 * one.cost.pictures > 0
    assert sum(each.pictures for each in planned.cost.evaluations) == planned.cost.pictures
    assert ids() == before


def test_subjects_are_found_by_a_filter(backend: Backend) -> None:
    spec = spec_of([EDITED[5]])
    spec.subject_filter = 'name >= "edited/0" AND name <= "edited/2"'
    planned = backend.create("", spec, validate_only=True)
    assert list(planned.spec.subjects) == [EDITED[5], *EDITED[:3]]


def test_drawn_seeds_are_hidden_until_the_campaign_has_ended(backend: Backend) -> None:
    say(backend.folder, f"hold-{EDITED[1]}")
    campaign = backend.create("hidden", spec_of(EDITED[:2]))
    try:
        assert not campaign.spec.template.HasField("seed_base")
        (first, second) = until(lambda: _once_first_is_done(backend, campaign.id))
        assert second.audit
        audits = backend.call("Audit", "ListAudits", audits_pb2.ListAuditsRequest(view="AUDIT_VIEW_FULL")).audits
        mine = [audit for audit in audits if audit.campaign == campaign.id]
        assert len(mine) == 2
        mine += [backend.call("Audit", "GetAudit", audits_pb2.GetAuditRequest(id=audit.id)) for audit in mine]
        watched = backend.call("Audit", "WatchAudit", audits_pb2.WatchAuditRequest(id=first.audit))
        mine += [event.state_changed for event in watched if event.HasField("state_changed")]
        assert len(mine) == 7
        assert not any(audit.spec.HasField("seed_base") for audit in mine)
        for service, method, request in (
            ("Audit", "GetReport", audits_pb2.GetReportRequest(id=first.audit)),
            ("Audit", "ReadArtifact", audits_pb2.ReadArtifactRequest(id=first.audit, digest="0" * 64)),
            ("Audit", "DeleteAudit", audits_pb2.DeleteAuditRequest(id=first.audit)),
            ("Campaign", "Compare", _pair(first.audit, first.audit)),
        ):
            with pytest.raises(grpc.RpcError) as early:
                backend.call(service, method, request)
            assert early.value.code() == grpc.StatusCode.FAILED_PRECONDITION, method
            assert details_of(early.value)[0] == "CAMPAIGN_NOT_ENDED"
        assert refused(backend, spec_of(EDITED[:1], comparedWith=campaign.id))[1] == "CAMPAIGN_NOT_ENDED"
    finally:
        unsay(backend.folder, f"hold-{EDITED[1]}")
    events = backend.watch(campaign.id)
    shown = [event.state_changed for event in events if event.HasField("state_changed")]
    assert [each.spec.template.HasField("seed_base") for each in shown] == [False, False, True]
    ended = backend.call("Campaign", "GetCampaign", campaigns_pb2.GetCampaignRequest(id=campaign.id))
    seed = ended.spec.template.seed_base
    assert 0 <= seed < 2**63
    for cell in backend.cells(campaign.id):
        audit = backend.call("Audit", "GetAudit", audits_pb2.GetAuditRequest(id=cell.audit))
        assert audit.spec.seed_base == seed
    assert backend.call("Audit", "GetReport", audits_pb2.GetReportRequest(id=first.audit))


def test_a_callers_own_seeds_are_shown(backend: Backend) -> None:
    say(backend.folder, "hold-all")
    try:
        campaign = backend.create("own", spec_of(EDITED[:1], template=TEMPLATE | {"seedBase": 5}))
        assert campaign.spec.template.seed_base == 5
        cell = until(lambda: next((cell for cell in backend.cells(campaign.id) if cell.audit), None))
        audit = backend.call("Audit", "GetAudit", audits_pb2.GetAuditRequest(id=cell.audit))
        assert (audit.spec.seed_base, audit.campaign) == (5, campaign.id)
        assert audit.spec.sequential
    finally:
        unsay(backend.folder, "hold-all")
    backend.watch(campaign.id)


def _once_first_is_done(backend: Backend, campaign_id: str) -> Any:
    cells = backend.cells(campaign_id)
    return cells if cells[0].HasField("verdict") else None


def _pair(first: str, second: str) -> comparisons_pb2.CompareRequest:
    return comparisons_pb2.CompareRequest(audits=comparisons_pb2.AuditPair(first=first, second=second))
