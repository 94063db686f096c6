"""The registry of probes, and what a probe is."""

from typing import Protocol

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Observation
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import Registry


class ProbeRun(Protocol):
    """Runs one unit of a probe: an async function that is decorated with `@probe`."""

    async def __call__(self, unit: Unit, models: Models, parameters: Parameters, /) -> list[Observation]:
        """Return what was observed; raise nothing for a picture that failed."""
        ...


PROBES = Registry[ProbeRun]("unerase_backend.probing.probes", "unerase.probes", beside="unerase_backend.attack.attacks")
probe = PROBES.register
