"""What each method needs: a scope, or nothing. A method that is not named here is nobody's but an admin's."""

from unerase_backend.coordinator.api.rooms_proxy import ROOMS
from unerase_backend.runtime.access import ADMIN

METRICS = "metrics"
"""What /metrics needs."""

_PUBLIC = ("grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch")
"""Orchestrators ask for health without a token; it says that a service runs, and nothing else."""

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
    "unerase.v1.ModelService/ListConcepts": "model:read",
    "unerase.v1.ModelService/GetConcept": "model:read",
    "unerase.v1.ModelService/CreateConcept": "model:write",
    "unerase.v1.ModelService/DeleteConcept": "model:write",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "reflection",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "reflection",
}

_ROOM_SCOPES = {service.full_name: room.application for room, service in ROOMS.items()}
"""Of the services behind, each a scope of its room's name."""


def scope_of(method: str) -> str | None:
    """Return the scope that `package.Service/Method` needs; None for what is public."""
    if method in _PUBLIC:
        return None
    return _SCOPES.get(method) or _ROOM_SCOPES.get(method.partition("/")[0], ADMIN)
