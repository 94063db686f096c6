"""The judges as a Ray Serve application; `engine` does the work."""

from typing import Any

from ray import serve
from ray.util import metrics

from unerase.internal.v1alpha1.classification_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    DescribeClassificationRequest,
    DescribeClassificationResponse,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.metrics import ClassificationMetrics
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.call_context import receives
from unerase_backend.runtime.deployment import application, begin_computing


class RayClassificationMetrics(ClassificationMetrics):
    """Reports classification's metrics to Ray, which serves them on each node's metrics port."""

    def __init__(self) -> None:
        judge = ("judge",)
        self._calls = metrics.Counter("unerase_classification_judge_calls_total", "Calls of a judge.", judge)
        self._pictures = metrics.Counter(
            "unerase_classification_pictures_total", "Pictures that a judge has looked at.", judge
        )
        self._seconds = metrics.Counter(
            "unerase_classification_judge_seconds_total", "Seconds that a judge took to look.", judge
        )
        self._loads = metrics.Counter("unerase_classification_judge_loads_total", "Judges loaded.")
        self._load_seconds = metrics.Counter(
            "unerase_classification_judge_load_seconds_total", "Seconds that judges took to load."
        )

    def judged(self, judge: str, pictures: int, seconds: float) -> None:
        """Count a judge's call, its pictures and its time."""
        tags = {"judge": judge}
        self._calls.inc(tags=tags)
        self._pictures.inc(pictures, tags)
        self._seconds.inc(seconds, tags)

    def loaded(self, seconds: float) -> None:
        """Count a load, and its time."""
        self._loads.inc()
        self._load_seconds.inc(seconds)


class Classification:
    """The ingress of application "classification": its methods are the RPCs of ClassificationService."""

    def __init__(self, settings: ClassificationSettings) -> None:
        # Imported only in the replica, so that the process that deploys it stays light.
        from unerase_backend.classification.engine import ClassificationEngine

        begin_computing("classification", settings)
        catalogue = Catalogue.load(settings.catalogues, digest_folder=settings.digests)
        self._engine = ClassificationEngine(
            catalogue, ArtifactStore(settings.artifacts), settings, RayClassificationMetrics()
        )

    @receives
    async def Classify(self, request: ClassifyRequest, pictures: Any = None) -> ClassifyResponse:  # noqa: N802
        """Answer every question of every picture; `pictures` comes as an object reference, which Ray resolves."""
        return await self._engine.Classify(request, pictures)

    @receives
    async def DescribeClassification(  # noqa: N802 - the RPC's name
        self, request: DescribeClassificationRequest
    ) -> DescribeClassificationResponse:
        """Return what fixes every bit of an answer."""
        return await self._engine.DescribeClassification(request)


def build(args: ClassificationSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    return application(Classification, args, max_ongoing_requests=256)
