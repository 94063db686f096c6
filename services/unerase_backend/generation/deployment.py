"""Generation as a Ray Serve application; `engine` does the work."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.util import metrics

from unerase.internal.v1alpha1.generation_pb2 import (
    DescribeGenerationRequest,
    DescribeGenerationResponse,
    EncodeRequest,
    EncodeResponse,
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
)
from unerase_backend.catalogue.opening import open_catalogue
from unerase_backend.generation.autoscaling import METRIC
from unerase_backend.generation.load import Load
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.routing import ModelRouter, routing_key
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.call_context import receives
from unerase_backend.runtime.deployment import application, begin_computing, prepare_later
from unerase_backend.runtime.handles import remote_classify

_QUEUE_SECONDS = [0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800]

_TELL_SECONDS = 1.0


class RayGenerationMetrics(GenerationMetrics):
    """Reports generation's metrics to Ray, which serves them on each node's metrics port."""

    def __init__(self) -> None:
        self._pictures = metrics.Counter(
            "unerase_generation_trajectories_total",
            "Trajectories that ended, by whether they were cached.",
            ("cached",),
        )
        self._steps = metrics.Counter("unerase_generation_unet_steps_total", "Calls of the UNet, each of a batch.")
        self._rows = metrics.Counter("unerase_generation_rows_total", "Rows of the UNet's calls that were in use.")
        self._places = metrics.Counter("unerase_generation_places_total", "Rows of the UNet's calls, used or not.")
        self._unet_seconds = metrics.Counter("unerase_generation_unet_seconds_total", "Seconds inside the UNet.")
        self._fill = metrics.Gauge("unerase_generation_batch_fill", "Share of the UNet's rows in use, 0 to 1.")
        self._queue = metrics.Gauge("unerase_generation_queue", "Trajectories that wait for a place in a batch.")
        self._waited = metrics.Histogram(
            "unerase_generation_queue_seconds",
            "Time from a trajectory's arrival to its place in a batch; the sum is an estimate from the buckets.",
            boundaries=_QUEUE_SECONDS,
        )
        self._loads = metrics.Counter(
            "unerase_generation_model_loads_total", "Models loaded, by outcome (loaded, failed).", ("outcome",)
        )
        self._load_seconds = metrics.Counter(
            "unerase_generation_model_load_seconds_total", "Seconds that models took to load."
        )

    def ticked(self, unet_seconds: float, rows: int, called: int) -> None:
        """Count the UNet's time and show the batch's fill."""
        if unet_seconds > 0:
            self._steps.inc()
            self._unet_seconds.inc(unet_seconds)
            self._places.inc(called)
        if rows:
            self._rows.inc(rows)
        self._fill.set(rows / called)

    def finished(self, pictures: int, *, cached: bool) -> None:
        """Count ended trajectories."""
        self._pictures.inc(pictures, {"cached": str(cached).lower()})

    def queued(self, trajectories: int) -> None:
        """Show the length of the queue."""
        self._queue.set(trajectories)

    def admitted(self, waited_seconds: float) -> None:
        """Note how long a trajectory waited."""
        self._waited.observe(waited_seconds)

    def loaded(self, seconds: float, *, failed: bool) -> None:
        """Count a load, and its time."""
        self._loads.inc(tags={"outcome": "failed" if failed else "loaded"})
        self._load_seconds.inc(seconds)


class Generation:
    """The ingress of application "generation": its methods are the RPCs of GenerationService."""

    def __init__(self, settings: GenerationSettings) -> None:
        # Imported only in the replica, so that the process that deploys it stays light.
        from unerase_backend.diffusion.libraries import prepare_libraries
        from unerase_backend.generation.engine import GenerationEngine

        begin_computing("generation", settings)
        prepare_later(prepare_libraries)
        store = ArtifactStore(settings.artifacts)
        catalogue = open_catalogue(settings, store)
        self._engine = GenerationEngine(catalogue, store, settings, remote_classify(), RayGenerationMetrics())
        self._load = Load()

    @receives
    async def Generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResponse]:  # noqa: N802
        """Run trajectories of one model and stream each one's sample as it ends."""
        with self._load.of(request) as share:
            async with aclosing(self._engine.Generate(request)) as responses:
                async for response in responses:
                    share.answered()
                    yield response

    @receives
    async def Encode(self, request: EncodeRequest) -> EncodeResponse:  # noqa: N802
        """Encode prompts."""
        return await self._engine.Encode(request)

    @receives
    async def MeasureDenoising(self, request: MeasureDenoisingRequest) -> MeasureDenoisingResponse:  # noqa: N802
        """Measure the noise-prediction error on given pictures."""
        with self._load.of(request):
            return await self._engine.MeasureDenoising(request)

    @receives
    async def DescribeGeneration(self, request: DescribeGenerationRequest) -> DescribeGenerationResponse:  # noqa: N802
        """Return what determines every bit of a result here."""
        return await self._engine.DescribeGeneration(request)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the load to Serve's autoscaler (`autoscaling`)."""
        return {METRIC: float(self._load.trajectories)}

    async def record_routing_stats(self) -> dict[str, Any]:
        """Report the models in memory and the load to the routers of callers (`routing`)."""
        held = sorted(routing_key(model.name, model.changes) for model in self._engine.models())
        return {"models": held, "trajectories": self._load.trajectories}


def build(args: GenerationSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    return application(
        Generation,
        args,
        max_ongoing_requests=1024,
        request_router_config=RequestRouterConfig(
            request_router_class=ModelRouter, request_routing_stats_period_s=_TELL_SECONDS
        ),
    )
