"""How much one audit and one tenant may take: settings of the coordinator, which `unerase serve` takes as well.

The defaults are what one machine can handle (docs/limits.md has the figures); 0 means no limit.
"""

from pydantic import BaseModel, Field

from unerase_backend.coordinator.planning.cost import CostLimits
from unerase_backend.runtime.access import Quota


class AdmissionSettings(BaseModel):
    """Limits on the cost of one audit, and the quota of every tenant that has none of its own."""

    audit_pictures: int = Field(default=200_000, ge=0, description="pictures that one audit may make; 0: no limit")
    audit_rows: int = Field(
        default=20_000_000, ge=0, description="rows of the denoising network that one audit may take; 0: no limit"
    )
    audit_stored_bytes: int = Field(
        default=64_000_000, ge=0, description="bytes of one audit's rows in the database as it begins; 0: no limit"
    )
    quota_audits: int = Field(default=1000, ge=0, description="audits that a tenant may have in flight; 0: no limit")
    quota_pictures_per_day: int = Field(
        default=6_000_000, ge=0, description="pictures of a tenant's audits within a day; 0: no limit"
    )
    quota_bytes: int = Field(
        default=100_000_000_000, ge=0, description="bytes of a tenant's pictures that are kept; 0: no limit"
    )
    quota_models: int = Field(default=10_000, ge=0, description="models that a tenant may have registered; 0: no limit")

    def cost_limits(self) -> CostLimits:
        """Return the limits on the cost of one audit."""
        return CostLimits(self.audit_pictures, self.audit_rows, self.audit_stored_bytes)

    def quota(self) -> Quota:
        """Return the quota of a tenant that has none of its own."""
        return Quota(
            audits=self.quota_audits,
            pictures_per_day=self.quota_pictures_per_day,
            bytes=self.quota_bytes,
            models=self.quota_models,
        )
