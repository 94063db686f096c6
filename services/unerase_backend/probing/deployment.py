"""The probes as a Ray Serve application; `engine` runs them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray import serve

from unerase.internal.v1alpha1.probing_pb2 import ListProbesRequest, ListProbesResponse, ProbeRequest, ProbeResponse
from unerase_backend.evaluation.models import Models
from unerase_backend.probing.engine import ProbingEngine
from unerase_backend.probing.settings import ProbingSettings
from unerase_backend.runtime.call_context import receives
from unerase_backend.runtime.deployment import application
from unerase_backend.runtime.handles import remote_models
from unerase_backend.runtime.portions import in_portions
from unerase_backend.runtime.telemetry import configure_telemetry


class Probing:
    """The ingress of the application "probing"; its methods are the RPCs of ProbingService."""

    def __init__(self, settings: ProbingSettings) -> None:
        configure_telemetry("probing", settings)
        self._engine = ProbingEngine(remote_models(Models))

    @receives
    async def Probe(self, request: ProbeRequest) -> AsyncGenerator[list[ProbeResponse]]:  # noqa: N802 - the RPC's name
        """Run one unit."""
        async with aclosing(self._engine.Probe(request)) as responses:
            async for portion in in_portions(responses, lambda response: response.event.HasField("progress")):
                yield portion

    @receives
    async def ListProbes(self, request: ListProbesRequest) -> ListProbesResponse:  # noqa: N802 - the RPC's name
        """List the probes."""
        return await self._engine.ListProbes(request)


def build(args: ProbingSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    return application(Probing, args, max_ongoing_requests=256)
