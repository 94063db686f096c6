"""The gRPC server: every service on one port that no other process shares, with health, reflection and limits."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from unerase.v1 import audits_pb2, campaigns_pb2, models_pb2, server_pb2
from unerase.v1.audits_pb2_grpc import add_AuditServiceServicer_to_server
from unerase.v1.campaigns_pb2_grpc import add_CampaignServiceServicer_to_server
from unerase.v1.models_pb2_grpc import add_ModelServiceServicer_to_server
from unerase.v1.server_pb2_grpc import add_ServerServiceServicer_to_server
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.api.campaign_service import CampaignServicer
from unerase_backend.coordinator.api.interceptor import MAX_RECEIVE_BYTES, MAX_SEND_BYTES, Interceptor, Translate
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.api.reflection import add_reflection
from unerase_backend.coordinator.api.rooms_proxy import ROOMS, room_handlers
from unerase_backend.coordinator.api.server_service import ServerServicer
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, NotFoundError, UnavailableError
from unerase_backend.runtime.handles import Room

MAX_METADATA_BYTES = 16 * 1024
MAX_CONNECTIONS = 4096
# More than one tenant may have in flight, so that the interceptor refuses a tenant's excess calls, with a reason.
MAX_STREAMS = 4096
# Calls that gRPC has read and the interceptor has not; calls of health wait behind them. gRPC cancels more than this
# without a reason.
MAX_PENDING = 4096

_OPTIONS: Sequence[tuple[str, Any]] = (
    # Otherwise two servers could share a port, and each would get some of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    # If the two limits differed, gRPC would refuse sizes between them at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_send_message_length", MAX_SEND_BYTES),
    # A watch of an audit may be silent for long, so the server pings, and lets clients ping every 5 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    # A connection that does not begin HTTP/2, or has no call for long, is closed.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 15 * 60_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # Calls above the limit wait in the client. With protection gRPC refuses some of them, because a client sees the end
    # of a call before the server no longer counts it.
    ("grpc.http.overload_protection", 0),
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
    # Each takes a file descriptor, and databases and artefacts need some as well.
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
)

_OWN = (
    audits_pb2.DESCRIPTOR.services_by_name["AuditService"],
    campaigns_pb2.DESCRIPTOR.services_by_name["CampaignService"],
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
    server_pb2.DESCRIPTOR.services_by_name["ServerService"],
)
SERVICES = (*_OWN, *ROOMS.values())
# By name; the empty name stands for the server.
_HEALTHY = frozenset(["", *(service.full_name for service in SERVICES)])
_MAX_SERVICE_NAME = 200


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Health by gRPC's protocol, with the backend's errors, and without remembering long names of unknown services."""

    async def Check(  # noqa: N802 - the RPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return whether a service serves."""
        if request.service not in _HEALTHY:
            raise NotFoundError("there is no such service", reason="SERVICE_NOT_FOUND")
        return await super().Check(request, context)

    async def Watch(  # noqa: N802 - the RPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Stream whether a service serves; by the protocol, an unknown service is one that may still come."""
        if len(request.service) > _MAX_SERVICE_NAME:
            description = f"must be at most {_MAX_SERVICE_NAME} characters, not {len(request.service)}"
            raise InvalidRequestError.of(FieldViolation("service", description))
        await super().Watch(request, context)


class Server:
    """The server with its health; it serves between `start` and `stop`."""

    def __init__(
        self,
        audits: AuditServicer,
        campaigns: CampaignServicer,
        models: ModelServicer,
        info: ServerServicer,
        metrics: Metrics,
        gate: Gate,
        translate: Translate,
    ) -> None:
        """Register all services; `translate` is that of `Interceptor`."""
        interceptor = Interceptor(metrics, gate, translate=translate)
        self._server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        add_AuditServiceServicer_to_server(audits, self._server)
        add_CampaignServiceServicer_to_server(campaigns, self._server)
        add_ModelServiceServicer_to_server(models, self._server)
        add_ServerServiceServicer_to_server(info, self._server)
        self._server.add_generic_rpc_handlers(room_handlers())
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._own = ["", *(service.full_name for service in _OWN)]
        names = [service.full_name for service in SERVICES]
        add_reflection([*names, health.SERVICE_NAME], self._server)

    async def start(self, host: str, port: int, certificates: Certificates | None = None) -> None:
        """Listen, encrypted if there are certificates.

        In health, the coordinator's own services serve from now on, and those of the rooms once `show` says so.

        Raises:
            UnavailableError: the address cannot be bound.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificates is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, certificates.credentials())
        except RuntimeError:
            bound = 0
        if bound != port:
            raise UnavailableError(
                f"{address} cannot be bound: another process is using it, or this machine has no such address",
                reason="ADDRESS_IN_USE",
            )
        await self._server.start()
        for name in self._own:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.show(dict.fromkeys(ROOMS, False))

    async def show(self, serving: Mapping[Room, bool]) -> None:
        """Set the health of the rooms' services; while the server drains, they stay NOT_SERVING."""
        states = health_pb2.HealthCheckResponse
        for room, serves in serving.items():
            await self._health.set(ROOMS[room].full_name, states.SERVING if serves else states.NOT_SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, and let those in flight end within the grace period."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
