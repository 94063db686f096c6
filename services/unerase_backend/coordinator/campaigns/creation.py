"""Accepts campaigns: checks a request, plans its first cells, and stores the campaign with all its cells."""

import hashlib
import secrets
import time
import uuid

from unerase.v1.campaigns_pb2 import CAMPAIGN_STATE_PENDING, Campaign, CampaignSpec, CreateCampaignRequest
from unerase_backend.coordinator.campaigns.first_cells import plan_first_cells
from unerase_backend.coordinator.campaigns.request import resolve_campaign
from unerase_backend.coordinator.campaigns.workflow import CampaignRunner
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.filtering import MODEL_FIELDS, holds, read_filter
from unerase_backend.coordinator.states import ENDED_CAMPAIGN
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.webhooks import CAMPAIGN
from unerase_backend.coordinator.webhooks.admission import WebhookAdmission
from unerase_backend.runtime import tracing
from unerase_backend.runtime.errors import AlreadyExistsError, FieldViolation, InvalidRequestError, PreconditionError
from unerase_backend.runtime.identifiers import AUDIT_ID
from unerase_backend.runtime.labels import check_labels


class Creation:
    """Creates campaigns."""

    def __init__(
        self,
        database: Database,
        admission: Admission,
        runner: CampaignRunner,
        webhooks: WebhookAdmission | None = None,
    ) -> None:
        self._database = database
        self._admission = admission
        self._runner = runner
        self._webhooks = webhooks or WebhookAdmission()

    async def create(self, request: CreateCampaignRequest, tenant: str) -> Campaign:
        """Accept a campaign, or return the campaign that the same request created before.

        With `validate_only` nothing is stored, and the answer has the cost.

        Raises:
            AlreadyExistsError: another request used the request id.
            InvalidRequestError: one violation for each bad field.
            ExhaustedError: the quota does not allow a cell, or the tenant has too many campaigns in flight.
            UneraseError: a room is unavailable, or the artefact store is full.
        """
        check_labels(request.labels)
        self._webhooks.check(request.webhook, tenant)
        digest = request_digest(request)
        if not request.validate_only and (existing := await self._repeated(request.request_id, digest, tenant)):
            return existing
        earlier = await self._earlier(request.spec, tenant)
        condition = read_filter(request.spec.subject_filter, MODEL_FIELDS, "spec.subject_filter")
        models, concepts = await self._admission.names(tenant)
        filtered = [name for name, values in models.items() if holds(condition, values)]
        taken = earlier.template.seed_base if earlier is not None else None
        spec = resolve_campaign(
            request.spec,
            filtered if request.spec.subject_filter else (),
            models,
            concepts,
            lambda: secrets.randbits(63) if taken is None else taken,
        )
        cost = await plan_first_cells(spec, self._admission, tenant)
        now = time.time_ns()
        campaign = Campaign(
            spec=spec, cells_total=len(spec.subjects) * len(spec.concepts), labels=request.labels, cost=cost
        )
        drawn = taken is None and not request.spec.template.HasField("seed_base")
        if request.validate_only:
            if drawn:
                # The campaign itself will have another one.
                campaign.spec.template.ClearField("seed_base")
            return campaign
        campaign.ClearField("cost")
        campaign.id, campaign.request_id, campaign.state = uuid.uuid4().hex, request.request_id, CAMPAIGN_STATE_PENDING
        campaign.create_time.CopyFrom(timestamp(now))
        origin = Origin(tenant, tracing.traceparent(), now, sealed=drawn)
        telling = self._database.webhooks.telling(CAMPAIGN, tenant, request.webhook)(campaign.id)
        if await self._database.campaign_transitions.insert(campaign, digest, origin, telling):
            self._runner.begin(campaign.id, 0)
            await self._runner.announce()
        # Otherwise a concurrent call with the same request id was first.
        found = await self._repeated(request.request_id, digest, tenant)
        if found is None:
            raise PreconditionError("the campaign of this request_id was just deleted", reason="CAMPAIGN_DELETED")
        return found

    async def _repeated(self, request_id: str, digest: str, tenant: str) -> Campaign | None:
        found = await self._database.campaigns.by_request(request_id, tenant)
        if found is None:
            return None
        campaign, known = found
        if known != digest:
            raise AlreadyExistsError(
                "another request used this request_id; choose a new one for a new campaign",
                reason="REQUEST_ID_REUSED",
                metadata={"campaign": campaign.id},
            )
        if campaign.state == CAMPAIGN_STATE_PENDING:
            # The first call may have ended before it could begin the workflow.
            self._runner.begin(campaign.id, 0)
        return campaign

    async def _earlier(self, spec: CampaignSpec, tenant: str) -> CampaignSpec | None:
        """Return the specification of the campaign that the request is compared with, if it names one.

        Raises:
            InvalidRequestError: that campaign, or one that the gate names, does not exist or has not ended.
        """
        asked = {"spec.compared_with": spec.compared_with, "spec.gate.no_worse_than": spec.gate.no_worse_than}
        found = {field: await self._ended(field, named, tenant) for field, named in asked.items() if named}
        return found.get("spec.compared_with")

    async def _ended(self, field: str, campaign_id: str, tenant: str) -> CampaignSpec:
        campaigns = self._database.campaigns
        earlier = await campaigns.owned(campaign_id, tenant) if AUDIT_ID.fullmatch(campaign_id) else None
        if earlier is None:
            raise _refused(field, "there is no campaign with this id", "CAMPAIGN_NOT_FOUND")
        if earlier.state not in ENDED_CAMPAIGN:
            raise _refused(field, "the campaign has not ended", "CAMPAIGN_NOT_ENDED")
        return earlier.spec


def request_digest(request: CreateCampaignRequest) -> str:
    """Return the SHA-256 of what a request asks for, to tell a repeated request from another one."""
    asked = CreateCampaignRequest(spec=request.spec, labels=request.labels, webhook=request.webhook)
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()


def _refused(field: str, description: str, reason: str) -> InvalidRequestError:
    error = InvalidRequestError.of(FieldViolation(field, description))
    error.reason = reason
    return error
