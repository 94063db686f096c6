"""Concludes an audit whose units are all done: computes its verdict and its manifest, and writes its reports."""

import asyncio
from collections.abc import Sequence
from importlib import metadata

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import EvaluationDescription
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend import report
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.records import judge_record
from unerase_backend.coordinator.execution.audit_models import AuditModels
from unerase_backend.coordinator.execution.reports import write_again, write_reports
from unerase_backend.coordinator.execution.units import Units
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.planning.parts import DESCRIPTIONS, descriptions_of
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.evidence import Evidence, Reports
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError
from unerase_backend.verdict import conclude

# Verdicts and reports are computed in threads, which compete for the interpreter with the event loop's calls.
_AT_ONCE = 2


class Conclusion:
    """Concludes audits, and renders a report again if one of its forms was lost."""

    def __init__(self, database: Database, catalogue: Catalogue, store: ArtifactStore, units: Units) -> None:
        self._database = database
        self._catalogue = catalogue
        self._store = store
        self._units = units
        self._audit_models = AuditModels(database, store)
        self._writing = FairQueue(_AT_ONCE)

    async def conclude(self, evidence: Evidence, end: int) -> tuple[Verdict, Reports]:
        """Return the verdict, and the reports that were written; `end` is in nanoseconds since 1970.

        Raises:
            DataLossError: pictures were lost and cannot be made again exactly as they were.
            UneraseError: a room is unavailable, or the artefact store is full.
        """
        manifest = await self._manifest(evidence.audit.id, evidence.audit.spec)
        descriptions = await self._descriptions(evidence.audit.id)
        await self._make_whole(evidence)
        tenant = (await self._database.audits.origin(evidence.audit.id)).tenant
        async with self._writing.turn():
            return await asyncio.to_thread(self._write, evidence, descriptions, manifest, end, tenant)

    async def render_again(self, audit_id: str) -> Reports | None:
        """Render an audit's report again from its content, after one of its forms was lost.

        Returns None if the audit was deleted.

        Raises:
            DataLossError: the content, or a picture in the report, is lost as well.
        """
        evidence = await self._database.evidence.everything(audit_id)
        reports = await self._database.evidence.reports(audit_id)
        if evidence is None or reports is None:
            return None
        await self._make_whole(evidence)
        descriptions = await self._descriptions(audit_id)
        tenant = (await self._database.audits.origin(audit_id)).tenant
        async with self._writing.turn():
            reports = await asyncio.to_thread(write_again, self._store, evidence, reports, descriptions, tenant)
        await self._database.evidence.replace_reports(audit_id, reports)
        return reports

    async def _descriptions(self, audit_id: str) -> list[EvaluationDescription]:
        """Return the descriptions that the audit was planned with, or today's if an earlier version planned it."""
        planned = descriptions_of(await self._database.unit_parts.of(audit_id, [DESCRIPTIONS]))
        return planned or list((await self._units.descriptions()).values())

    async def _make_whole(self, evidence: Evidence) -> None:
        """Make again the pictures that were lost since their units were recorded, and put back the concept's own.

        Raises:
            DataLossError: a picture does not come out the same, for example because the numerics profile has changed.
        """
        audit = evidence.audit
        lost = await asyncio.to_thread(self._lost, evidence)
        if lost:
            await self._units.put_back([evidence.concept])
        for unit_id in await self._database.evidence.unit_ids(audit.id) if lost else ():
            observations = await self._database.evidence.observations(audit.id, [unit_id])
            planned = await self._database.evidence.unit(audit.id, unit_id)
            if planned and not lost.isdisjoint(observation.picture_digest for observation in observations):
                await self._units.compute(audit.id, planned[0])
        if lost and await asyncio.to_thread(self._lost, evidence):
            raise DataLossError(
                "pictures of the audit were lost and can no longer be made exactly as they were; run the audit again"
            )

    def _lost(self, evidence: Evidence) -> set[str]:
        concept, observed = evidence.concept, {observation.picture_digest for observation in evidence.observations}
        digests = {*observed, *concept.picture_digests, *concept.near_miss_digests} - {""}
        return {digest for digest in digests if not self._store.whole(digest)}

    async def _manifest(self, audit_id: str, spec: AuditSpec) -> Manifest:
        registered = await self._audit_models.of(audit_id)
        described = await self._units.described()
        names = list(dict.fromkeys(name for name in (spec.subject, spec.reference, spec.control) if name))
        models = [
            registered.message(_recorded(await asyncio.to_thread(self._catalogue.describe_model, internal)))
            for internal in map(registered.inward, names)
        ]
        providers = (await self._units.classification_described()).kinds
        judges = [
            await asyncio.to_thread(judge_record, name, self._catalogue, providers)
            for name in dict.fromkeys((spec.selector, spec.judge, spec.second_judge))
        ]
        return Manifest(
            versions={**described.versions, "unerase": metadata.version("unerase")},
            numerics_profile=described.numerics_profile,
            models=models,
            judge_digests={judge.name: judge.digest for judge in judges},
            hardware=described.hardware,
            judges=judges,
        )

    def _write(
        self,
        evidence: Evidence,
        descriptions: Sequence[EvaluationDescription],
        manifest: Manifest,
        end: int,
        tenant: str,
    ) -> tuple[Verdict, Reports]:
        audit, spec = evidence.audit, evidence.audit.spec
        verdict = conclude(evidence.observations, descriptions, spec.battery.evaluations, spec)
        report.shipped().quote(verdict, spec)
        content = report.build(
            spec,
            evidence.concept,
            evidence.cases,
            spec.battery.evaluations,
            verdict,
            evidence.observations,
            evidence.findings,
            manifest,
            descriptions,
            audit.notes,
        )
        reports = write_reports(self._store, audit, end, content, descriptions, evidence.observations, tenant)
        return verdict, reports


def _recorded(model: Model) -> Model:
    """Return a model as a report names it: without labels, which its owner may change at any time."""
    recorded = Model()
    recorded.CopyFrom(model)
    recorded.ClearField("labels")
    return recorded
