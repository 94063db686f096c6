"""The attacks as a Ray Serve application; what they do is in `engine`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray import serve

from unerase.internal.v1alpha1.attack_pb2 import (
    AttackRequest,
    AttackResponse,
    ListAttacksRequest,
    ListAttacksResponse,
)
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import Catalogue
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.handles import remote_models


class Attack:
    """The ingress of application "attack": its methods are the RPCs of AttackService."""

    def __init__(self, settings: AttackSettings) -> None:
        # Imported by the replica alone: what only deploys it stays light.
        import torch
        import transformers

        from unerase_backend.attack.engine import AttackEngine

        torch.set_num_threads(settings.torch_threads)
        transformers.logging.disable_progress_bar()
        catalogue = Catalogue.load(settings.catalogues)
        self._engine = AttackEngine(catalogue, ArtifactStore(settings.artifacts), settings, remote_models(Models))

    async def Attack(self, request: AttackRequest) -> AsyncGenerator[AttackResponse]:  # noqa: N802 - the RPC's name
        """Run one unit."""
        async with aclosing(self._engine.Attack(request)) as responses:
            async for response in responses:
                yield response

    async def ListAttacks(self, request: ListAttacksRequest) -> ListAttacksResponse:  # noqa: N802 - the RPC's name
        """List the attacks there are."""
        return await self._engine.ListAttacks(request)


def build(args: AttackSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    deployment = serve.deployment(
        Attack,
        name="attack",
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=64,
        health_check_period_s=3,
    )
    return deployment.bind(args)
