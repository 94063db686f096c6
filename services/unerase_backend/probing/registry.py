"""The registry of probes, and the type of a probe."""

from typing import Protocol

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Observation
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import Registry


class ProbeRun(Protocol):
    """Runs one unit of a probe: an async function that is decorated with `@probe`."""

    async def __call__(self, unit: Unit, models: Models, parameters: Parameters, /) -> list[Observation]:
        """Return the observations; a picture that failed is an unscored observation, not an error."""
        ...


PROBES = Registry[ProbeRun]("unerase_backend.probing.probes", "unerase.probes", beside="unerase_backend.attack.attacks")
probe = PROBES.register
