"""Runs probes: takes a unit and yields its observations.

Closing the stream cancels the unit, and with it the trajectories that no other unit waits for.
"""

import asyncio
from collections.abc import AsyncGenerator

from unerase.internal.v1alpha1.probing_pb2 import ListProbesRequest, ListProbesResponse, ProbeRequest, ProbeResponse
from unerase.internal.v1alpha1.units_pb2 import Progress, UnitEvent
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.units import HEARTBEAT_SECONDS, resolve_unit
from unerase_backend.probing.registry import PROBES


class ProbingEngine:
    """Runs the probes with the given backends."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Probe(self, request: ProbeRequest) -> AsyncGenerator[ProbeResponse]:  # noqa: N802 - the RPC's name
        """Run one unit and yield its observations.

        Raises:
            NotFoundError: an unknown probe, model or picture.
            InvalidRequestError: a bad parameter, or a unit that lacks a field the probe needs.
        """
        evaluation, parameters = resolve_unit(request.unit, PROBES, "probe")
        run = asyncio.ensure_future(evaluation.run(request.unit, self._models.of(request.unit), parameters))
        try:
            while not (await asyncio.wait({run}, timeout=HEARTBEAT_SECONDS))[0]:
                yield ProbeResponse(event=UnitEvent(progress=Progress()))
            for observation in run.result():
                yield ProbeResponse(event=UnitEvent(observation=observation))
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def ListProbes(self, request: ListProbesRequest) -> ListProbesResponse:  # noqa: N802 - the RPC's name
        """List the probes, in order of name."""
        described = [evaluation.description for evaluation in PROBES.all().values()]
        return ListProbesResponse(probes=described, broken=PROBES.broken())
