"""The judges as a Ray Serve application; what they do is in `engine`."""

from typing import Any

from ray import serve

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.runtime.artifacts import ArtifactStore


class Classification:
    """The ingress of application "classification": its methods are the RPCs of ClassificationService."""

    def __init__(self, settings: ClassificationSettings) -> None:
        # Imported by the replica alone: what only deploys it stays light.
        import torch
        import transformers

        from unerase_backend.classification.engine import ClassificationEngine

        torch.set_num_threads(settings.torch_threads)
        transformers.logging.disable_progress_bar()
        catalogue = Catalogue.load(settings.catalogues)
        self._engine = ClassificationEngine(catalogue, ArtifactStore(settings.artifacts), settings)

    async def Classify(self, request: ClassifyRequest, pictures: Any = None) -> ClassifyResponse:  # noqa: N802
        """Answer every question of every picture; `pictures` comes as an object reference, which Ray resolves."""
        return await self._engine.Classify(request, pictures)


def build(args: ClassificationSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    deployment = serve.deployment(
        Classification,
        name="classification",
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=256,
        health_check_period_s=3,
    )
    return deployment.bind(args)
