"""The attacks as a Ray Serve application; `engine` runs them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray import serve
from ray.util import metrics

from unerase.internal.v1alpha1.attack_pb2 import (
    AttackRequest,
    AttackResponse,
    ListAttacksRequest,
    ListAttacksResponse,
)
from unerase_backend.attack.metrics import AttackMetrics
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue.opening import open_catalogue
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.call_context import receives
from unerase_backend.runtime.deployment import application, begin_computing, prepare_later
from unerase_backend.runtime.handles import remote_models
from unerase_backend.runtime.portions import in_portions


class RayAttackMetrics(AttackMetrics):
    """Reports to Ray's metrics, which each node exports on its metrics port."""

    def __init__(self) -> None:
        evaluation = ("evaluation",)
        self._steps = metrics.Counter("unerase_attack_steps_total", "Steps of the attacks' optimisations.", evaluation)
        self._seconds = metrics.Counter(
            "unerase_attack_compute_seconds_total",
            "Seconds of the attacks' own work, their pictures apart.",
            evaluation,
        )
        self._loads = metrics.Counter("unerase_attack_model_loads_total", "Models loaded.")
        self._load_seconds = metrics.Counter(
            "unerase_attack_model_load_seconds_total", "Seconds that models took to load."
        )

    def stepped(self, evaluation: str) -> None:
        """Count a step."""
        self._steps.inc(tags={"evaluation": evaluation})

    def computed(self, evaluation: str, seconds: float) -> None:
        """Count the time in the thread."""
        self._seconds.inc(seconds, {"evaluation": evaluation})

    def loaded(self, seconds: float) -> None:
        """Count a load and its time."""
        self._loads.inc()
        self._load_seconds.inc(seconds)


class Attack:
    """The ingress of the application "attack"; its methods are the RPCs of AttackService."""

    def __init__(self, settings: AttackSettings) -> None:
        # Imported only in the replica, so that the process that deploys it does not load torch.
        from unerase_backend.attack.engine import AttackEngine
        from unerase_backend.diffusion.libraries import prepare_libraries

        begin_computing("attack", settings)
        prepare_later(prepare_libraries)
        store, models = ArtifactStore(settings.artifacts), remote_models(Models)
        catalogue = open_catalogue(settings, store)
        self._engine = AttackEngine(catalogue, store, settings, models, RayAttackMetrics())

    @receives
    async def Attack(self, request: AttackRequest) -> AsyncGenerator[list[AttackResponse]]:  # noqa: N802 - the RPC's name
        """Run one unit."""
        async with aclosing(self._engine.Attack(request)) as responses:
            async for portion in in_portions(responses, lambda response: response.event.HasField("progress")):
                yield portion

    @receives
    async def ListAttacks(self, request: ListAttacksRequest) -> ListAttacksResponse:  # noqa: N802 - the RPC's name
        """List the attacks."""
        return await self._engine.ListAttacks(request)


def build(args: AttackSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    return application(Attack, args, max_ongoing_requests=64)
