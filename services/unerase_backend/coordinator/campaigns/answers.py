"""Answers what is asked of campaigns and audits that have ended: comparisons, and other gates than a campaign's own."""

import tempfile
from collections.abc import Iterator

from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Audit
from unerase.v1.campaigns_pb2 import Campaign
from unerase.v1.comparisons_pb2 import AuditComparison, CampaignComparison, CompareResponse
from unerase.v1.gates_pb2 import Gate, GateResult
from unerase_backend.comparison import Recorded, check_gate, compare_audits
from unerase_backend.comparison.campaigns import is_changed
from unerase_backend.coordinator.campaigns.comparing import compare
from unerase_backend.coordinator.campaigns.conclusion import CampaignConclusion
from unerase_backend.coordinator.campaigns.reader import Reader
from unerase_backend.coordinator.campaigns.reports import CampaignReports
from unerase_backend.coordinator.campaigns.request import whole_gate
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError, PreconditionError

# Comparing takes a core. At once in all, and for one tenant.
_COMPARING = (2, 1)


class Answers:
    """Compares, and evaluates gates."""

    def __init__(
        self, database: Database, store: ArtifactStore, conclusion: CampaignConclusion, reports: CampaignReports
    ) -> None:
        self._database = database
        self._store = store
        self._conclusion = conclusion
        self._reports = reports
        self.comparing = FairQueue(*_COMPARING)

    async def audits(self, first: Audit, second: Audit) -> AuditComparison:
        """Return the comparison of two audits of the caller that have succeeded; the first is the earlier one.

        Raises:
            PreconditionError: one of them has no report, or shows none yet.
            DataLossError: a report is lost.
        """
        digests = []
        for audit in (first, second):
            reports = await self._database.evidence.reports(audit.id)
            hidden = await self._database.audits.hidden(audit.id)
            if audit.state != AUDIT_STATE_SUCCEEDED or reports is None or hidden:
                what = "its campaign has not ended" if hidden else "it has not succeeded"
                reason = "CAMPAIGN_NOT_ENDED" if hidden else "REPORT_NOT_READY"
                metadata = {"audit": audit.id}
                raise PreconditionError(
                    f"there is no report of the audit {audit.id}: {what}", reason=reason, metadata=metadata
                )
            digests.append(reports.content)
        reader = Reader(self._database, self._store)

        def compared() -> AuditComparison:
            return compare_audits(
                *(_recorded(reader, *each) for each in zip((first.id, second.id), digests, strict=True))
            )

        return await self.comparing.run(compared)

    def campaigns(self, first: str, second: str, *, changed_only: bool) -> Iterator[CompareResponse]:
        """Return the comparison of two campaigns, to be read in threads: each cell, and at last the whole.

        Raises:
            NotFoundError: one of them was deleted meanwhile.
        """
        reader = Reader(self._database, self._store)

        def read() -> Iterator[CompareResponse]:
            try:
                for part in compare(reader, first, second):
                    if isinstance(part, CampaignComparison):
                        yield CompareResponse(campaigns=part)
                    elif not changed_only or is_changed(part):
                        yield CompareResponse(cell=part)
            except LookupError:
                raise NotFoundError("one of the campaigns was deleted", reason="CAMPAIGN_NOT_FOUND") from None

        return read()

    async def gate(self, campaign: Campaign, gate: Gate | None) -> GateResult:
        """Return what a gate says of a campaign that has ended; by default its own.

        Raises:
            InvalidRequestError: the gate asks nothing, or one of its limits is out of its bounds.
            PreconditionError: the campaign has no gate of its own, and none is given.
        """
        if gate is None and campaign.HasField("gate_result"):
            return campaign.gate_result
        if gate is None and not campaign.spec.HasField("gate"):
            raise PreconditionError(
                "the campaign has no gate; give one", reason="GATE_MISSING", metadata={"campaign": campaign.id}
            )
        whole = whole_gate(campaign.spec.gate if gate is None else gate)
        check_gate(whole, campaign.spec.concepts)
        content = await self._reports.content(campaign)
        with tempfile.TemporaryFile() as file:
            await self.comparing.run(self._reports.read, content, file)
            return await self._conclusion.evaluate(campaign.id, file, whole)


def _recorded(reader: Reader, audit_id: str, content_digest: str) -> Recorded:
    found = reader.recorded(audit_id, content_digest)
    if found is None:
        raise DataLossError(f"the report of the audit {audit_id} is lost; run the audit again")
    return found
