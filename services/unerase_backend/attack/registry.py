"""The registry of attacks, and the type of an attack."""

from functools import partial
from typing import Protocol

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Observation
from unerase_backend.attack.workbench import Workbench
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.registry import Registry


class AttackRun(Protocol):
    """Runs one unit of an attack: an async function that is decorated with `@attack`.

    The workbench has the parameters and the model with its gradients. Through it an attack reports its progress and
    findings.
    """

    async def __call__(self, unit: Unit, models: Models, workbench: Workbench, /) -> list[Observation]:
        """Return the observations; a picture that failed is an unscored observation, not an error."""
        ...


ATTACKS = Registry[AttackRun](
    "unerase_backend.attack.attacks", "unerase.attacks", beside="unerase_backend.probing.probes"
)
attack = partial(ATTACKS.register, attack=True)
