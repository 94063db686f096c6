"""The scope that each method needs. A method that is not named here needs the scope `admin`."""

from unerase_backend.coordinator.api.rooms_proxy import ROOMS
from unerase_backend.runtime.access import ADMIN

METRICS = "metrics"
"""The scope that /metrics needs."""

ANY = ""
"""The scope of methods that need a valid token, whatever it is for."""

_PUBLIC = ("grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch")
"""Methods that need no token. Orchestrators read health without one; it says only whether a service runs."""

_SCOPES = {
    "unerase.v1.AuditService/CreateAudit": "audit:write",
    "unerase.v1.AuditService/CancelAudit": "audit:write",
    "unerase.v1.AuditService/DeleteAudit": "audit:write",
    "unerase.v1.AuditService/GetAudit": "audit:read",
    "unerase.v1.AuditService/ListAudits": "audit:read",
    "unerase.v1.AuditService/WatchAudit": "audit:read",
    "unerase.v1.AuditService/GetReport": "audit:read",
    "unerase.v1.AuditService/ReadArtifact": "audit:read",
    "unerase.v1.AuditService/ListEvaluations": "audit:read",
    "unerase.v1.ModelService/ListModels": "model:read",
    "unerase.v1.ModelService/GetModel": "model:read",
    "unerase.v1.ModelService/CheckModel": "model:read",
    "unerase.v1.ModelService/ListBackbones": "model:read",
    "unerase.v1.ModelService/RegisterModel": "model:write",
    "unerase.v1.ModelService/ImportStatus": "model:read",
    "unerase.v1.ModelService/DeleteModel": "model:write",
    "unerase.v1.ModelService/ListConcepts": "model:read",
    "unerase.v1.ModelService/GetConcept": "model:read",
    "unerase.v1.ModelService/CreateConcept": "model:write",
    "unerase.v1.ModelService/DeleteConcept": "model:write",
    "unerase.v1.CampaignService/CreateCampaign": "campaign:write",
    "unerase.v1.CampaignService/CancelCampaign": "campaign:write",
    "unerase.v1.CampaignService/RetryCampaign": "campaign:write",
    "unerase.v1.CampaignService/DeleteCampaign": "campaign:write",
    "unerase.v1.CampaignService/GetCampaign": "campaign:read",
    "unerase.v1.CampaignService/ListCampaigns": "campaign:read",
    "unerase.v1.CampaignService/ListCells": "campaign:read",
    "unerase.v1.CampaignService/WatchCampaign": "campaign:read",
    "unerase.v1.CampaignService/GetCampaignReport": "campaign:read",
    "unerase.v1.CampaignService/Compare": "campaign:read",
    "unerase.v1.CampaignService/EvaluateGate": "campaign:read",
    "unerase.v1.ServerService/GetServerInfo": ANY,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "reflection",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "reflection",
}

_ROOM_SCOPES = {service.full_name: room.application for room, service in ROOMS.items()}
"""For the service of each room, the scope with the room's name."""


def scope_of(method: str) -> str | None:
    """Return the scope that `package.Service/Method` needs; None if it needs no token."""
    if method in _PUBLIC:
        return None
    return _SCOPES.get(method, _ROOM_SCOPES.get(method.partition("/")[0], ADMIN))
