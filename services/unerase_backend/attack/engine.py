"""Runs attacks: takes a unit and yields progress, findings and observations while the optimisation runs in a thread.

Closing the stream cancels the unit: the optimisation ends at its next step.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from unerase.internal.v1alpha1.attack_pb2 import (
    AttackRequest,
    AttackResponse,
    ListAttacksRequest,
    ListAttacksResponse,
)
from unerase.internal.v1alpha1.units_pb2 import Progress, UnitEvent
from unerase.v1.types_pb2 import Observation
from unerase_backend.attack.metrics import AttackMetrics
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.attack.workbench import Calls, Workbench
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.stepping import schedule_of
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.profile import computing_profile
from unerase_backend.diffusion.sharing import share_weights
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.units import HEARTBEAT_SECONDS, resolve_unit
from unerase_backend.runtime import graphs
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import OUT_OF_MEMORY, ExhaustedError, PreconditionError, UneraseError
from unerase_backend.runtime.exhaustion import is_out_of_memory, release_memory


class AttackEngine:
    """Runs the attacks with the models that they optimise against and the backends that make pictures."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        settings: AttackSettings,
        models: Models,
        metrics: AttackMetrics | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._settings = settings
        self._models = models
        self._metrics = metrics or AttackMetrics()
        self._calls = Calls(settings.gradient_rows, settings.encode_batch)
        self._kept: OrderedDict[str, DiffusionModel] = OrderedDict()
        # One thread, so that units are optimised one after another: two at once would compete for the same device.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attack")

    async def Attack(self, request: AttackRequest) -> AsyncGenerator[AttackResponse]:  # noqa: N802 - the RPC's name
        """Run one unit; its observations come last.

        Raises:
            NotFoundError: an unknown attack, model or picture.
            InvalidRequestError: a bad parameter, or a unit that lacks a field every attack needs.
            DeadlineError: the unit has used up its time.
            ExhaustedError: the device has too little memory; from now on calls are smaller.
            PreconditionError: the device has too little memory, and calls cannot be smaller.
        """
        unit, calls = request.unit, self._calls
        profile = self._profile(calls)
        evaluation, parameters = resolve_unit(unit, ATTACKS, "attack")
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[UnitEvent | None] = asyncio.Queue()
        given_up = threading.Event()

        async def attack() -> list[Observation]:
            model = await loop.run_in_executor(self._thread, self._model, unit.model, unit.schedule_of)
            workbench = Workbench(
                unit,
                model,
                self._model,
                parameters,
                self._store,
                self._thread,
                lambda event: loop.call_soon_threadsafe(lambda: events.put_nowait(event)),
                given_up,
                self._settings.unit_timeout_seconds,
                f"{evaluation.description.source_digest} {profile}",
                calls,
                self._metrics,
            )
            return await evaluation.run(unit, self._models.of(unit), workbench)

        run = asyncio.create_task(attack())
        # A unit whose pictures fail ends while its optimisation goes on.
        run.add_done_callback(lambda _: given_up.set())
        run.add_done_callback(lambda _: events.put_nowait(None))
        latest = UnitEvent(progress=Progress())
        try:
            while (event := await _next(events, latest)) is not None:
                latest = event if event.HasField("progress") else latest
                yield AttackResponse(event=event, numerics_profile=profile)
            for observation in run.result():
                yield AttackResponse(event=UnitEvent(observation=observation), numerics_profile=profile)
        except Exception as error:
            # That of onnxruntime is no RuntimeError of Python's.
            if not is_out_of_memory(error):
                raise
            raise self._shrink(calls) from error
        finally:
            given_up.set()
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def ListAttacks(self, request: ListAttacksRequest) -> ListAttacksResponse:  # noqa: N802 - the RPC's name
        """List the attacks, in order of name."""
        described = [evaluation.description for evaluation in ATTACKS.all().values()]
        return ListAttacksResponse(
            attacks=described, broken=ATTACKS.broken(), numerics_profile=self._profile(self._calls)
        )

    def close(self) -> None:
        """End the thread after its current work, without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _profile(self, calls: Calls) -> str:
        settings = self._settings
        device, dtype = torch.device(settings.device), getattr(torch, settings.precision)
        batches = {"gradients": calls.gradient_rows, "encode": calls.encode_batch}
        profile = computing_profile(device, dtype, settings.torch_threads, **batches)
        return f"{profile} small={graphs.runtime_of(device, dtype)}"

    def _shrink(self, calls: Calls) -> UneraseError:
        """Go on with smaller calls, and return the error of the unit that did not fit."""
        self._kept.clear()
        release_memory()
        said = f"the attack needs more memory than the device has free, with {calls.gradient_rows} rows in a call"
        if (smaller := calls.smaller()) is None:
            todo = "free memory on it, or take a smaller dtype, a larger device or an audit without this evaluation"
            return PreconditionError(f"{said}, which is the least; {todo}", reason=OUT_OF_MEMORY)
        self._calls = smaller
        message = f"{said}; from now on {smaller.gradient_rows}"
        return ExhaustedError(message, reason=OUT_OF_MEMORY, retry_after_seconds=1)

    def _model(self, name: str, stepped_by: str = "") -> DiffusionModel:
        torch.set_num_threads(self._settings.torch_threads)
        if name not in self._kept:
            device, dtype = torch.device(self._settings.device), getattr(torch, self._settings.precision)
            begin = time.perf_counter()
            while len(self._kept) >= self._settings.models_kept:
                self._kept.popitem(last=False)
            model = load_model(self._catalogue, name, device, dtype)
            share_weights(model, self._kept.values())
            self._kept[name] = model
            self._metrics.loaded(time.perf_counter() - begin)
        self._kept.move_to_end(name)
        model = self._kept[name]
        if not stepped_by:
            return model
        return replace(model, schedule=model.schedule.stepped_by(schedule_of(self._catalogue, stepped_by)))


async def _next(events: "asyncio.Queue[UnitEvent | None]", latest: UnitEvent) -> UnitEvent | None:
    try:
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            return await events.get()
    except TimeoutError:
        return latest
