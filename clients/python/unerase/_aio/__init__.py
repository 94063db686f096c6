"""The client for asyncio, with the same methods as `Client`; its calls stand in one module a service."""

# `timeout` is a deadline that is sent to the backend, and the same argument as in Client.
# ruff: noqa: ASYNC109
from grpc_health.v1 import health_pb2, health_pb2_grpc

from unerase._aio.audits import AsyncAuditCalls
from unerase._aio.campaigns import AsyncCampaignCalls
from unerase._aio.catalogue import AsyncCatalogueCalls

__all__ = ["AsyncClient"]


class AsyncClient(AsyncAuditCalls, AsyncCampaignCalls, AsyncCatalogueCalls):
    """A connection to a backend, opened by the first call, in the event loop of that call.

    Every method raises `UneraseError`. A timeout is in seconds and covers all attempts; None takes the settings' own.
    """

    async def serving(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Return whether a service is being served, by its full name; without a name, the backend as a whole.

        NOT_FOUND means that the service does not exist. Needs no token.
        """
        stub = health_pb2_grpc.HealthStub(self._open())
        answer = await self._ask(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
