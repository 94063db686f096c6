"""The registry of attacks, and what an attack is."""

from functools import partial
from typing import Protocol

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Observation
from unerase_backend.attack.workbench import Workbench
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.registry import Registry


class AttackRun(Protocol):
    """Runs one unit of an attack: an async function that is decorated with `@attack`.

    On the workbench are the parameters and the model with its gradients; there an attack reports progress and leaves
    what it found.
    """

    async def __call__(self, unit: Unit, models: Models, workbench: Workbench, /) -> list[Observation]:
        """Return what was observed; raise nothing for a picture that failed."""
        ...


ATTACKS = Registry[AttackRun](
    "unerase_backend.attack.attacks", "unerase.attacks", beside="unerase_backend.probing.probes"
)
attack = partial(ATTACKS.register, attack=True)
