"""Admits audits: plans a request, checks its cost and its tenant's quota, and accepts it, whoever asks for it.

A call asks for one audit, a campaign for one after the other.
"""

import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from unerase.v1.audits_pb2 import AUDIT_STATE_PENDING, Audit, AuditSpec
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.describing import described_by_entry
from unerase_backend.coordinator.execution.workflow import Auditor
from unerase_backend.coordinator.fair_queue import THREADS, FairQueue
from unerase_backend.coordinator.filtering import Values, model_values
from unerase_backend.coordinator.planning.cost import CostLimits, check_cost
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.planning.registered import models_named, plan_registered
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import Within, nothing_more
from unerase_backend.coordinator.storage.models import NamedDefinition
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.artifacts import ArtifactStore

# Plans are made in threads, which compete for the interpreter with the event loop's calls.
_PLANS_AT_ONCE = 2
_NO_LIMITS = CostLimits()


@dataclass(frozen=True)
class Planned:
    """A request that can be accepted."""

    plan: Plan
    expected: Sequence[float] | None
    """The expected seconds of each unit, if they are known."""
    audit: Audit
    """The audit as it would be, without id, state and times."""


class Admission:
    """Plans and accepts the audits of all tenants."""

    def __init__(
        self,
        auditor: Auditor,
        database: Database,
        catalogue: Catalogue,
        store: ArtifactStore,
        quota: Callable[[str], Quota],
        limits: CostLimits = _NO_LIMITS,
    ) -> None:
        self._auditor = auditor
        self._database = database
        self._catalogue = catalogue
        self._store = store
        self._quota = quota
        self._limits = limits
        self._planning = FairQueue(_PLANS_AT_ONCE)
        self._threads = FairQueue(*THREADS)

    async def catalogue(self, tenant: str, concepts: Sequence[str]) -> Catalogue:
        """Return the catalogue as a tenant sees it, with those of the named concepts that are its own."""
        return self._catalogue.extended(await self._database.concepts.named(concepts, tenant))

    async def names(self, tenant: str) -> tuple[dict[str, Values], set[str]]:
        """Return what a tenant may name: models, each with what a filter compares, and the names of concepts."""
        custom = await self._database.concepts.names(tenant)
        known = {each.name: each for each in await self._database.models.models(tenant)}
        known |= {name: described_by_entry(name, entry) for name, entry in self._catalogue.models.items()}
        models = {name: model_values(known[name]) for name in sorted(known)}
        return models, {*self._catalogue.concepts, *custom}

    async def plan(self, spec: AuditSpec, tenant: str) -> Planned:
        """Plan a tenant's request; what waits for its turn is the caller's.

        Raises:
            InvalidRequestError: one violation for each bad field, or the audit is too large.
            UneraseError: a room is unavailable, or the artefact store is full.
        """
        units = self._auditor.units
        descriptions, broken = await units.descriptions(), await units.broken()
        catalogue = await self.catalogue(tenant, [spec.concept, spec.placebo, *spec.placebos])
        models = await self._database.models.definitions(models_named(spec, catalogue), tenant)
        plan = await self._made(models, spec, catalogue, descriptions, broken)
        check_cost(plan.cost, self._limits)
        expected = self._auditor.estimates.expected(plan.units, plan.works)
        audit = Audit(spec=plan.spec, units_total=len(plan.units), cost=plan.cost, notes=plan.notes)
        if expected:
            audit.cost.estimated_duration.CopyFrom(self._auditor.estimates.duration(expected))
        return Planned(plan, expected, audit)

    async def _made(
        self,
        models: Sequence[NamedDefinition],
        spec: AuditSpec,
        catalogue: Catalogue,
        descriptions: Mapping[str, EvaluationDescription],
        broken: Mapping[str, str],
    ) -> Plan:
        async with self._planning.turn():
            draw_seed = partial(secrets.randbits, 63)
            return await self._threads.run(
                plan_registered, models, spec, catalogue, self._store, descriptions, draw_seed, broken
            )

    async def check(self, planned: Planned, tenant: str) -> None:
        """Check a planned audit against its tenant's quota, without accepting it.

        Raises:
            ExhaustedError: the quota does not allow the audit.
        """
        await self._database.transitions.check(tenant, self._quota(tenant), planned.plan)

    async def accept(
        self,
        planned: Planned,
        request_id: str,
        request_digest: str,
        origin: Origin,
        within: Callable[[Audit], Within] | None = None,
    ) -> Audit | None:
        """Accept a planned audit and begin it; None if its request id is taken.

        `within` gets the audit, and returns what is written in the same transaction. The origin's time is set here.

        Raises:
            ExhaustedError: the quota does not allow the audit.
        """
        now = time.time_ns()
        audit = Audit()
        audit.CopyFrom(planned.audit)
        audit.id, audit.request_id, audit.state = uuid.uuid4().hex, request_id, AUDIT_STATE_PENDING
        audit.campaign = origin.campaign
        audit.create_time.CopyFrom(timestamp(now))
        if planned.expected:
            audit.estimated_end_time.CopyFrom(timestamp(now + audit.cost.estimated_duration.ToNanoseconds()))
        origin = Origin(origin.tenant, origin.traceparent, now, origin.campaign, origin.sealed)
        inserted = await self._database.transitions.insert(
            audit,
            request_digest,
            planned.plan,
            origin,
            self._quota(origin.tenant),
            planned.expected,
            nothing_more if within is None else within(audit),
        )
        if not inserted:
            return None
        # The audit is accepted now, even if its workflow has to wait before it can start.
        self._auditor.begin(audit.id)
        await self._auditor.announce()
        return audit
