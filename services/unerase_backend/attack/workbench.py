"""The workbench of an attack: a model with gradients, pictures, and methods to report progress and findings.

The weights are frozen; gradients flow through them to the variables that the attack optimises. An attack that trains
weights gets a copy of them. The optimisation runs in a thread and calls `progress` (or `check`) once a step, which
raises an error if the caller has given up.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from unerase.internal.v1alpha1.units_pb2 import Progress, Unit, UnitEvent
from unerase.v1.types_pb2 import MODEL_ACCESS_UNSPECIFIED, Finding
from unerase_backend.attack.metrics import AttackMetrics
from unerase_backend.attack.padding import Padding
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.pictures import encode
from unerase_backend.diffusion.shapes import ENCODE_BATCH, GRADIENT_ROWS
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.units import without_access
from unerase_backend.runtime import tracing
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import CancelledError, DeadlineError, FieldViolation, InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

Result = TypeVar("Result")

REPORTS = 100
TRACE_POINTS = 100


@dataclass(frozen=True)
class Calls:
    """The most that one call of a network takes, whatever an attack's parameters ask for in one step."""

    gradient_rows: int = GRADIENT_ROWS
    """Rows of the UNet whose gradients are kept."""
    encode_batch: int = ENCODE_BATCH
    """Pictures that the VAE encodes."""

    def smaller(self) -> "Calls | None":
        """Return the next calls that need less memory; None if there are none."""
        halved = Calls(max(1, self.gradient_rows // 2), max(1, self.encode_batch // 2))
        return None if halved == self else halved

    def parts(self, rows: int) -> list[slice]:
        """Return `rows` rows in parts of at most `gradient_rows`."""
        return [slice(start, min(start + self.gradient_rows, rows)) for start in range(0, rows, self.gradient_rows)]


class Workbench:
    """The workbench of one run of one unit."""

    def __init__(
        self,
        unit: Unit,
        model: DiffusionModel,
        load: Callable[[str], DiffusionModel],
        parameters: Parameters,
        store: ArtifactStore,
        thread: Executor,
        emit: Callable[[UnitEvent], object],
        given_up: threading.Event,
        timeout_seconds: float,
        source_digest: str,
        calls: Calls = Calls(),
        metrics: AttackMetrics | None = None,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.calls = calls
        self.padding = Padding()
        self._unit = unit
        self._load = load
        self._store = store
        self._thread = thread
        self._emit = emit
        self._deadline = time.monotonic() + timeout_seconds
        self._given_up = given_up
        self._source_digest = source_digest
        self._metrics = metrics or AttackMetrics()

    async def compute(self, optimisation: Callable[[], Result]) -> Result:
        """Run `optimisation` in the room's thread, so that the event loop stays free."""

        def timed() -> Result:
            begin = time.perf_counter()
            try:
                with tracing.span("attack.compute"):
                    return optimisation()
            finally:
                self._metrics.computed(self._unit.evaluation, time.perf_counter() - begin)

        return await asyncio.get_running_loop().run_in_executor(self._thread, copy_context().run, timed)

    def reference(self) -> DiffusionModel:
        """Return the audit's reference, with its weights frozen. Call it within `compute`: it may load the model.

        Raises:
            InvalidRequestError: the unit names no reference.
            NotFoundError: the catalogue has no such model.
        """
        if not self._unit.reference:
            raise InvalidRequestError.of(FieldViolation("unit.reference", "must be given"))
        return self._load(self._unit.reference)

    def check(self) -> None:
        """Raise an error if the optimisation must end.

        Raises:
            CancelledError: the caller gave up.
            DeadlineError: the unit has used up its time.
        """
        if self._given_up.is_set():
            raise CancelledError("the caller gave up")
        if time.monotonic() > self._deadline:
            raise DeadlineError("the unit has used up the time that the attack's deployment allows")

    def progress(self, step: int, steps: int, loss: float | None = None, success: float | None = None) -> None:
        """Report that `step` of `steps` are done, and `check`. It sends about a hundred reports, and always the last.

        `success` is the share of cases in which the selector sees the concept so far.
        """
        self._metrics.stepped(self._unit.evaluation)
        self.check()
        if step == steps or step * REPORTS // steps != (step - 1) * REPORTS // steps:
            self._emit(UnitEvent(progress=Progress(step=step, steps=steps, loss=loss, success=success)))

    def finding(self, finding: Finding) -> None:
        """Report a finding, with evaluation, role, model and concept filled in and the losses thinned to a hundred."""
        whole = Finding()
        whole.CopyFrom(finding)
        whole.evaluation, whole.role, whole.model = self._unit.evaluation, self._unit.role, self._unit.model
        whole.concept = self._unit.target.concept.name
        del whole.losses[:]
        whole.losses.extend(finding.losses[:: -(-len(finding.losses) // TRACE_POINTS) or 1])
        self._emit(UnitEvent(finding=whole))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a new CPU generator for `purpose`, the same for every role, so that all models get the same draws."""
        return torch.Generator().manual_seed(derive_seed(self._unit.seed_base, self._unit.evaluation, *purpose))

    def keep_weights(self, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors as safetensors in the artefact store, in the model's dtype, and return their digest."""
        return self._store.put(
            save({key: tensor.detach().to("cpu", self.model.dtype).contiguous() for key, tensor in tensors.items()})
        )

    def latents(self, digests: Sequence[str]) -> Tensor:
        """Return the latents of pictures of the artefact store, (n, channels, height, width), float32 on the CPU.

        Raises:
            NotFoundError: a picture is not in the store.
            UnreadablePictureError: one is damaged.
            InvalidRequestError: one does not have the model's resolution.
        """
        side = self.model.resolution
        pictures = [decode_picture(self._store.get(digest)) for digest in digests]
        if any(picture.shape != (side, side, 3) for picture in pictures):
            description = f"the model's pictures are {side} x {side} pixels"
            raise InvalidRequestError.of(FieldViolation("unit.target.concept.picture_digests", description))
        # Cloned, because the VAE runs in inference mode, and autograd does not accept inference tensors.
        return encode(self.model, pictures, self.calls.encode_batch).clone()

    @property
    def rows(self) -> int:
        """The rows of a call in which rows are independent: the attack's parameter, as far as the device takes it."""
        asked: int = self.parameters["rows"]
        return min(asked, self.calls.gradient_rows)

    def keep(self, content: bytes) -> str:
        """Keep found weights in the artefact store and return their digest."""
        return self._store.put(content)

    def kept(self, digest: str) -> bool:
        """Return whether the artefact store still has the content that `keep` stored under this digest."""
        return self._store.contains(digest)

    def record(self, key: str, content: bytes) -> None:
        """Record the result of the work that `key` names, so that no unit has to repeat it.

        The key covers everything that the result depends on except the source code, which this method adds.
        """
        self._store.put_record(self._record_key(key), content)

    def recorded(self, key: str) -> bytes | None:
        """Return the result that the same source code recorded under `key`; None if there is none."""
        return self._store.get_record(self._record_key(key))

    def search_key(self, *depends: str) -> str:
        """Return the key of a search that is the same with and without the guards of the model; empty if the unit says
        nothing of access, so that no other unit searches the same.

        It covers the unit, the weights and their schedule; `depends` names whatever else the search depends on.
        """
        if self._unit.access == MODEL_ACCESS_UNSPECIFIED:
            return ""
        parts = [
            without_access(self._unit).SerializeToString(deterministic=True),
            self.model.schedule.identity,
            self.model.prediction.encode(),
        ]
        hashed = (hashlib.sha256(part).hexdigest() for part in parts)
        return "\0".join(["search", self.model.digest, *hashed, *depends])

    def _record_key(self, key: str) -> str:
        return hashlib.sha256(f"{self._source_digest}\0{key}".encode()).hexdigest()
