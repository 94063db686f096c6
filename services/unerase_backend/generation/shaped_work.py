"""Work in one set of shapes: a worker, the trajectories that share it, and the numerics profile of what they make.

If the device runs out of memory, everything is replaced by the same in smaller shapes. Results of different shapes have
different profiles, so that each is stored under its own key; within one set of shapes nothing changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from unerase_backend.diffusion import profile
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.model_request import RequestedModel
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.generation.shared_trajectories import SharedTrajectories
from unerase_backend.generation.worker import Worker
from unerase_backend.runtime import graphs
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import OUT_OF_MEMORY, ExhaustedError, PreconditionError, UneraseError


@dataclass(frozen=True)
class Shapes:
    """The rows of a UNet call, the pictures of a VAE call, and how many models are in memory."""

    batch_rows: int
    decode_batch: int
    models_in_memory: int

    def smaller(self, *, loading: bool) -> "Shapes | None":
        """Return the next shapes that need less memory; None if there are none.

        A call that did not fit is halved. A model that did not fit when it was loaded takes the place of another.
        """
        fewer_models = replace(self, models_in_memory=max(1, self.models_in_memory - 1))
        halved = replace(self, batch_rows=max(2, self.batch_rows // 2), decode_batch=max(1, self.decode_batch // 2))
        choices = (fewer_models, halved) if loading else (halved, fewer_models)
        return next((choice for choice in choices if choice != self), None)

    def __str__(self) -> str:
        rows, pictures = counted(self.batch_rows, "row"), counted(self.decode_batch, "decoded picture")
        return f"{rows}, {pictures} and {counted(self.models_in_memory, 'model')}"


class ShapedWork:
    """A worker, with the trajectories that callers share, in one set of shapes."""

    def __init__(
        self,
        shapes: Shapes,
        settings: GenerationSettings,
        load: Callable[[RequestedModel], DiffusionModel],
        load_guards: Callable[[str], Guards],
        store: ArtifactStore,
        metrics: GenerationMetrics,
        exhausted: Callable[["ShapedWork", bool], UneraseError],
    ) -> None:
        device, dtype = torch.device(settings.device), getattr(torch, settings.precision)
        self.shapes = shapes
        self.profile = profile.numerics_profile(
            device,
            dtype,
            settings.torch_threads,
            shapes.batch_rows,
            shapes.decode_batch,
            graphs.runtime_of(device, dtype),
        )
        self.worker = Worker(
            load,
            batch_rows=shapes.batch_rows,
            decode_batch=shapes.decode_batch,
            models_in_memory=shapes.models_in_memory,
            torch_threads=settings.torch_threads,
            niceness=settings.niceness,
            metrics=metrics,
            exhausted=lambda loading: exhausted(self, loading),
        )
        self.shared = SharedTrajectories(self.worker, store, device, self.profile, metrics, load_guards)

    def close(self) -> None:
        """Stop after the current step."""
        self.worker.close()
        self.shared.close()


def exhausted_error(following: Shapes | None, shapes: Shapes) -> UneraseError:
    """Return the error of work that did not fit into `shapes`, and is to be tried again in those that follow."""
    said = f"the device has too little memory for {shapes}"
    if following is None:
        todo = "free memory on it, or take a smaller dtype or a larger device"
        return PreconditionError(f"{said}, which is the least; {todo}", reason=OUT_OF_MEMORY)
    return ExhaustedError(f"{said}; from now on {following}", reason=OUT_OF_MEMORY, retry_after_seconds=1)
