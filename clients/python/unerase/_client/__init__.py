"""The synchronous client; its calls stand in one module a service."""

from grpc_health.v1 import health_pb2, health_pb2_grpc

from unerase._client.audits import AuditCalls
from unerase._client.campaigns import CampaignCalls
from unerase._client.catalogue import CatalogueCalls

__all__ = ["Client"]


class Client(AuditCalls, CampaignCalls, CatalogueCalls):
    """A connection to a backend, opened by the first call; safe to share between threads.

    Every method raises `UneraseError`. A timeout is in seconds and covers all attempts; None takes the settings' own.
    """

    def serving(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Return whether a service is being served, by its full name; without a name, the backend as a whole.

        NOT_FOUND means that the service does not exist. Needs no token.
        """
        stub = health_pb2_grpc.HealthStub(self._open())
        answer = self._ask(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
