"""The gRPC server: every service on one port that nobody else shares, with health, reflection and limits."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from unerase.v1 import audits_pb2, models_pb2
from unerase.v1.audits_pb2_grpc import add_AuditServiceServicer_to_server
from unerase.v1.models_pb2_grpc import add_ModelServiceServicer_to_server
from unerase_backend.coordinator.audits import AuditServicer
from unerase_backend.coordinator.interception import Interceptor
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.models import ModelServicer
from unerase_backend.coordinator.rooms import ROOMS, room_handlers
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.errors import NotFoundError, UnavailableError
from unerase_backend.runtime.handles import Room

MAX_RECEIVE_BYTES = 4 * 1024 * 1024
# Samples may carry latents, and a page of audits their verdicts.
MAX_SEND_BYTES = 64 * 1024 * 1024

_OPTIONS: Sequence[tuple[str, Any]] = (
    # Without this two servers share a port, and each gets some of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", MAX_SEND_BYTES),
    # Watching an audit may be silent for long: the server pings, and lets clients ping every 5 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)

_OWN = (
    audits_pb2.DESCRIPTOR.services_by_name["AuditService"],
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
)
SERVICES = (*_OWN, *ROOMS.values())


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Health whose refusal is an error of the domain, with its reason."""

    async def Check(  # noqa: N802 - the RPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Say how a service is.

        Raises:
            NotFoundError: there is no service of this name.
        """
        if request.service and request.service not in (service.full_name for service in SERVICES):
            raise NotFoundError("the backend has no service of this name", reason="SERVICE_NOT_FOUND")
        answer: health_pb2.HealthCheckResponse = await super().Check(request, context)
        return answer


class Server:
    """The server with its health; it is up between `start` and `stop`."""

    def __init__(self, audits: AuditServicer, models: ModelServicer, metrics: Metrics, gate: Gate) -> None:
        self._server = grpc.aio.server(interceptors=[Interceptor(metrics, gate)], options=_OPTIONS)
        add_AuditServiceServicer_to_server(audits, self._server)
        add_ModelServiceServicer_to_server(models, self._server)
        self._server.add_generic_rpc_handlers(room_handlers())
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._own = ["", *(service.full_name for service in _OWN)]
        names = [service.full_name for service in SERVICES]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    async def start(self, host: str, port: int, certificates: Certificates | None = None) -> None:
        """Listen, encrypted where there are certificates.

        Health: our own services serve from now on, those of the rooms once `show` says so.

        Raises:
            UnavailableError: the address is not to be had.
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
            raise UnavailableError(f"{address} cannot be bound: another process has it", reason="ADDRESS_IN_USE")
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
