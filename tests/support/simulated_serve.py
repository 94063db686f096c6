"""The rooms of `simulated` as Ray Serve applications: a coordinator calls them by Serve's handles."""

from collections.abc import AsyncIterator
from pathlib import Path

import ray
from ray import serve

from support.simulated import Rooms
from unerase.internal.v1alpha1.attack_pb2 import ListAttacksRequest, ListAttacksResponse
from unerase.internal.v1alpha1.classification_pb2 import DescribeClassificationRequest, DescribeClassificationResponse
from unerase.internal.v1alpha1.generation_pb2 import DescribeGenerationRequest, DescribeGenerationResponse
from unerase.internal.v1alpha1.probing_pb2 import ListProbesRequest, ListProbesResponse, ProbeRequest, ProbeResponse
from unerase_backend.runtime import handles
from unerase_backend.runtime.call_context import receives

MAX_ONGOING_REQUESTS = 256
"""As the probes of a real backend have it.

Where each replica takes one request, those that wait look for a free replica by guessing, over and over: of 50 replicas
21 had work.
"""


class Simulated:
    """The ingress of each application; its methods are those RPCs that a coordinator calls."""

    def __init__(self, said: str) -> None:
        self._rooms = Rooms(Path(said))

    @receives
    async def Probe(self, request: ProbeRequest) -> AsyncIterator[ProbeResponse]:  # noqa: N802 - the RPC's name
        """Answer with a unit's observations."""
        async for response in self._rooms.stream("Probe", request):
            yield response

    @receives
    async def ListProbes(self, request: ListProbesRequest) -> ListProbesResponse:  # noqa: N802 - the RPC's name
        """List the one probe."""
        return await self._rooms.call("ListProbes", request)  # type: ignore[no-any-return]

    @receives
    async def ListAttacks(self, request: ListAttacksRequest) -> ListAttacksResponse:  # noqa: N802 - the RPC's name
        """List no attack."""
        return await self._rooms.call("ListAttacks", request)  # type: ignore[no-any-return]

    @receives
    async def DescribeGeneration(  # noqa: N802 - the RPC's name
        self, request: DescribeGenerationRequest
    ) -> DescribeGenerationResponse:
        """Return a profile."""
        return await self._rooms.call("DescribeGeneration", request)  # type: ignore[no-any-return]

    @receives
    async def DescribeClassification(  # noqa: N802 - the RPC's name
        self, request: DescribeClassificationRequest
    ) -> DescribeClassificationResponse:
        """Return a profile."""
        return await self._rooms.call("DescribeClassification", request)  # type: ignore[no-any-return]


def deploy(said: Path, replicas: int) -> None:
    """Start Ray, and on it the rooms, with so many replicas of the probes; return once all of them run."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(proxy_location="Disabled")
    rooms = (handles.GENERATION, handles.CLASSIFICATION, handles.PROBING, handles.ATTACK)
    serve.run_many(
        [
            serve.RunTarget(
                serve.deployment(
                    Simulated,
                    name=room.application,
                    num_replicas=replicas if room is handles.PROBING else 1,
                    max_ongoing_requests=MAX_ONGOING_REQUESTS,
                    ray_actor_options={"num_cpus": 0},
                ).bind(str(said)),
                name=room.application,
                route_prefix=None,
            )
            for room in rooms
        ]
    )
