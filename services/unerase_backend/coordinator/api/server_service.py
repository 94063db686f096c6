"""ServerService: says what this backend is and what it allows."""

# ruff: noqa: N802 - methods have the names of the RPCs

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc

from unerase._contract_number import CONTRACT
from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.server_pb2 import GetServerInfoRequest, ServerInfo
from unerase.v1.server_pb2_grpc import ServerServiceServicer
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import MAX_STEPS
from unerase_backend.coordinator.api import call_limits, concept_upload, interceptor, model_service, paging
from unerase_backend.coordinator.filtering import syntax
from unerase_backend.coordinator.planning.cost import CostLimits
from unerase_backend.coordinator.planning.request import MAX_EVALUATIONS, MAX_NAME
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.runtime.access import CALLER, Quota
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.labels import MAX_LABELS

Context = grpc.aio.ServicerContext[Any, Any]

LIMITS: Mapping[str, int] = {
    "message_bytes": interceptor.MAX_RECEIVE_BYTES,
    "answer_bytes": interceptor.MAX_SEND_BYTES,
    "page_items": paging.MAX_PAGE_SIZE,
    "page_bytes": paging.MAX_PAGE_BYTES,
    "filter_characters": syntax.MAX_LENGTH,
    "filter_comparisons": syntax.MAX_RESTRICTIONS,
    "labels": MAX_LABELS,
    "name_characters": MAX_NAME,
    "cases": MAX_CASES,
    "steps": MAX_STEPS,
    "evaluations": MAX_EVALUATIONS,
    "concepts": model_service.MAX_CONCEPTS,
    "concept_pictures": concept_upload.MAX_PICTURES,
    "concept_picture_bytes": concept_upload.MAX_PICTURE_BYTES,
    "concept_bytes": concept_upload.MAX_UPLOAD_BYTES,
    "campaign_subjects": most_items(CampaignSpec, "subjects"),
    "campaign_concepts": most_items(CampaignSpec, "concepts"),
    "calls": call_limits.CALLS,
    "watches": call_limits.WATCHES,
}
"""The limits that are the same for all backends of this version; the operator's settings are added to them."""

FEATURES = ("campaigns", "filters", "labels")
"""What every backend of this version has."""


@dataclass(frozen=True)
class Allowed:
    """What the operator allows beside the limits."""

    features: Sequence[str] = ()
    """What not every backend has, as "webhooks"."""
    model_roots: Sequence[str] = ()
    model_organisations: Sequence[str] = ()
    webhook_hosts: Sequence[str] = ()


class ServerServicer(ServerServiceServicer):
    """Tells callers of any valid token; what only some may use is told to those."""

    def __init__(
        self,
        descriptions: Callable[[], Awaitable[Mapping[str, EvaluationDescription]]],
        costs: CostLimits,
        quota: Callable[[str], Quota],
        allowed: Allowed,
    ) -> None:
        self._descriptions = descriptions
        self._costs = costs
        self._quota = quota
        self._allowed = allowed

    async def GetServerInfo(self, request: GetServerInfoRequest, context: Context) -> ServerInfo:
        """Return version, limits and features."""
        caller, allowed = CALLER.get(), self._allowed
        info = ServerInfo(
            version=version("unerase"),
            contract=CONTRACT,
            time=timestamp(time.time_ns()),
            evaluations=sorted(await self._descriptions()),
            limits=LIMITS,
            features=sorted({*FEATURES, *allowed.features}),
        )
        quota = self._quota(caller.tenant)
        settings = {
            "audit_pictures": self._costs.pictures,
            "audit_rows": self._costs.rows,
            "audit_stored_bytes": self._costs.bytes,
            "tenant_audits": quota.audits,
            "tenant_pictures_per_day": quota.pictures_per_day,
            "tenant_bytes": quota.bytes,
            "tenant_models": quota.models,
        }
        # 0 stands for no limit.
        info.limits.update({name: limit for name, limit in settings.items() if limit})
        if caller.may("model:write"):
            info.model_roots.extend(allowed.model_roots)
            info.model_organisations.extend(allowed.model_organisations)
        if caller.may("audit:write"):
            info.webhook_hosts.extend(allowed.webhook_hosts)
        return info
