"""Computes one unit: takes its result from the unit cache, or has the probing or attack room run it.

`unit_runs.py` decides when a unit runs. Of a unit only its progress is written to the database here; its workflow
records the result.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest, ListAttacksRequest
from unerase.internal.v1alpha1.classification_pb2 import (
    DescribeClassificationRequest,
    DescribeClassificationResponse,
)
from unerase.internal.v1alpha1.generation_pb2 import DescribeGenerationRequest, DescribeGenerationResponse
from unerase.internal.v1alpha1.probing_pb2 import ListProbesRequest, ProbeRequest
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase.v1.audits_pb2 import AuditEvent, UnitProgress
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    MODEL_ACCESS_UNSPECIFIED,
    Concept,
    EvaluationDescription,
    Finding,
    ModelRole,
    Observation,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.execution import unit_cache
from unerase_backend.coordinator.execution.audit_models import AuditModels
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.parts import digests_of, whole
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.errors import is_transient
from unerase_backend.coordinator.storage.estimates import Estimates
from unerase_backend.coordinator.storage.transitions import AuditEndedError
from unerase_backend.evaluation.cost import Surroundings, work_of
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.evaluation.units import without_access
from unerase_backend.runtime.artifacts import LOST, ArtifactStore
from unerase_backend.runtime.errors import OUT_OF_MEMORY, DataLossError, UneraseError
from unerase_backend.runtime.handles import ATTACK, CLASSIFICATION, GENERATION, PROBING

_logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0
_PROFILES_SECONDS = 5.0

Found = TypeVar("Found", Observation, Finding)


class UnitUnderWayError(Exception):
    """The same unit is being computed for another audit; `ended` is set once it no longer is."""

    def __init__(self, ended: asyncio.Event) -> None:
        super().__init__("the same unit is under way")
        self.ended = ended


class Units:
    """Has rooms run units, and keeps the results in the unit cache; also asks the rooms for their evaluations."""

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        store: ArtifactStore,
        metrics: Metrics,
        notifications: Notifications,
        estimates: Estimates,
    ) -> None:
        self._database = database
        self._catalogue = catalogue
        self._store = store
        self._metrics = metrics
        self._notifications = notifications
        self._estimates = estimates
        self._audit_models = AuditModels(database, store)
        self._under_way: dict[str, asyncio.Event] = {}
        self._probes: dict[str, EvaluationDescription] = {}
        self._attacks: dict[str, EvaluationDescription] = {}
        self._broken: dict[str, str] = {}
        self._attack_profile = ""
        self._profiles_known = ""
        self._profiles_until = 0.0

    async def descriptions(self) -> Mapping[str, EvaluationDescription]:
        """Return the descriptions of the rooms' evaluations, by name; the rooms are asked once.

        Raises:
            UnavailableError: a room is temporarily unavailable.
        """
        if not self._attacks:
            probes, attacks = await asyncio.gather(
                PROBING.call("ListProbes", ListProbesRequest(), timeout_seconds=60),
                ATTACK.call("ListAttacks", ListAttacksRequest(), timeout_seconds=60),
            )
            self._probes = {description.name: description for description in probes.probes}
            # The backend's own names are distinct; if two third parties chose the same name, the probe gets it.
            self._attacks = {each.name: each for each in attacks.attacks if each.name not in self._probes}
            self._broken = {**attacks.broken, **probes.broken}
            self._attack_profile = attacks.numerics_profile
        return {**self._probes, **self._attacks}

    async def broken(self) -> Mapping[str, str]:
        """Return the rooms' entry points that cannot be used, each with the reason; the rooms are asked once."""
        await self.descriptions()
        return self._broken

    def is_attack(self, evaluation: str) -> bool:
        """Whether the attack room has the evaluation, as far as the rooms have been asked."""
        return evaluation in self._attacks

    async def described(self) -> DescribeGenerationResponse:
        """Return generation's description of itself.

        Raises:
            UnavailableError: the room is temporarily unavailable.
        """
        described: DescribeGenerationResponse = await GENERATION.call(
            "DescribeGeneration", DescribeGenerationRequest(), timeout_seconds=60
        )
        return described

    async def classification_described(self) -> DescribeClassificationResponse:
        """Return classification's description of itself; raises as `described`."""
        described: DescribeClassificationResponse = await CLASSIFICATION.call(
            "DescribeClassification", DescribeClassificationRequest(), timeout_seconds=60
        )
        return described

    async def compute(self, audit_id: str, planned: Unit) -> UnitResult:
        """Return the result of a unit, as `attempt`; if it is under way, wait until it no longer is."""
        while True:
            try:
                return await self.attempt(audit_id, planned)
            except UnitUnderWayError as error:
                await error.ended.wait()

    async def attempt(self, audit_id: str, planned: Unit) -> UnitResult:
        """Return the result of a unit as the database holds it, and report its progress to the audit's watchers.

        Raises:
            UnitUnderWayError: the same unit, or one that makes the same search, is under way.
            AuditEndedError: the audit is no longer in flight.
            DataLossError: an artefact is lost and cannot be made again.
            UneraseError: an error of the room.
        """
        names = await self._audit_models.of_unit(audit_id, planned)
        try:
            result = await self._computed(audit_id, planned)
        except UneraseError as error:
            raise names.error(error) from None
        return names.message(result)

    async def _computed(self, audit_id: str, planned: Unit) -> UnitResult:
        """Return the result of a unit by the names that rooms know; raises as `attempt`."""
        description = (await self.descriptions())[planned.evaluation]
        unit = await self._whole(audit_id, planned)
        rooms, attacked = await self._profiles(description.name)
        key = await self._key(unit, description, rooms, attacked)
        # Audits that need the same unit at the same time wait for the one that began it.
        with self._alone(key, *self._searches(unit)):
            result = await asyncio.to_thread(unit_cache.find, self._store, key)
            if result is None:
                begin = time.monotonic()
                try:
                    result, computed = await self._run_whole(audit_id, unit)
                except UneraseError as error:
                    if error.reason == OUT_OF_MEMORY:
                        # The attack room goes on with smaller calls, and its profile says so.
                        self._attacks = {}
                    raise _with_role(error, unit) from None
                self._took(unit, description, time.monotonic() - begin)
                if await self._unchanged(description.name, rooms):
                    key = await self._key(unit, description, rooms, computed) if computed != attacked else key
                    await asyncio.to_thread(unit_cache.keep, self._store, key, result)
            else:
                self._metrics.units_kept.labels(unit.evaluation).inc()
        return result

    async def _profiles(self, evaluation: str, *, fresh: bool = False) -> tuple[str, str]:
        """Return what fixes the bits of an evaluation's results beside their source: in the rooms that every evaluation
        uses, and in that of the attacks, which is empty for a probe.

        A replica of the attacks may have smaller shapes than the one that was asked; its answers name its own profile.
        Unless `fresh`, the rooms are asked at most every few seconds: what a unit computed is kept only if they say the
        same after it.
        """
        if fresh or time.monotonic() >= self._profiles_until:
            described, judged = await asyncio.gather(self.described(), self.classification_described())
            self._profiles_known = f"{described.numerics_profile}; {judged.numerics_profile}"
            self._profiles_until = time.monotonic() + _PROFILES_SECONDS
        return self._profiles_known, self._attack_profile if evaluation in self._attacks else ""

    async def _unchanged(self, evaluation: str, rooms: str) -> bool:
        """Return whether the rooms compute as before; one in other shapes may have made a unit's pictures in both."""
        try:
            return (await self._profiles(evaluation, fresh=True))[0] == rooms
        except UneraseError:
            # The unit is done; only its result is not kept for others.
            return False

    async def _key(self, unit: Unit, description: EvaluationDescription, rooms: str, attacked: str) -> str:
        return await asyncio.to_thread(unit_cache.unit_key, unit, description, self._catalogue, f"{rooms}; {attacked}")

    @contextmanager
    def _alone(self, *keys: str) -> Iterator[None]:
        """Be the only one that computes what the keys name.

        Raises:
            UnitUnderWayError: another one computes something of it.
        """
        for key in keys:
            if (ended := self._under_way.get(key)) is not None:
                raise UnitUnderWayError(ended)
        ended = asyncio.Event()
        self._under_way |= dict.fromkeys(keys, ended)
        try:
            yield
        finally:
            for key in keys:
                del self._under_way[key]
            ended.set()

    def _searches(self, unit: Unit) -> list[str]:
        """Return the key of a search that others of the unit's audit share: one makes it, the others take it over."""
        if unit.evaluation not in self._attacks or unit.access == MODEL_ACCESS_UNSPECIFIED:
            return []
        search = without_access(unit).SerializeToString(deterministic=True)
        return [f"search {hashlib.sha256(search).hexdigest()}"]

    async def _whole(self, audit_id: str, unit: Unit) -> Unit:
        """Put back what the unit shares with others of its audit."""
        contents = await self._database.unit_parts.of(audit_id, digests_of(unit))
        try:
            return await asyncio.to_thread(whole, unit, contents)
        except KeyError:
            # The parts are deleted with their audit.
            raise AuditEndedError(audit_id) from None

    def _took(self, unit: Unit, description: EvaluationDescription, seconds: float) -> None:
        self._metrics.unit_seconds.labels(unit.evaluation).observe(seconds)
        parameters = resolve_parameters(description, unit.parameters)
        work = work_of(unit, description, parameters, Surroundings.of(unit.target, unit.others))
        self._estimates.note(unit, work, seconds)

    async def _run_whole(self, audit_id: str, unit: Unit) -> tuple[UnitResult, str]:
        """Run a unit. If an artefact turns out to be lost, make it again if possible, and run the unit once more."""
        try:
            return await self._run(audit_id, unit)
        except UneraseError as error:
            if error.reason not in LOST:
                raise
            _logger.warning("running %s again: %s", unit.evaluation, error.message)
        await self.put_back([target.concept for target in (unit.target, *unit.others)])
        if unit.control_kind == CONTROL_KIND_CONCEPT_FREE:
            # Its pictures are of other concepts, and its name is the audit's.
            others = self._catalogue.concepts
            await self.put_back([Concept(name=name) for name, entry in others.items() if not entry.placebo])
        try:
            return await self._run(audit_id, unit)
        except UneraseError as error:
            if error.reason not in LOST:
                raise
            raise DataLossError(error.message) from None

    async def put_back(self, concepts: Sequence[Concept]) -> None:
        """Store the pictures of the catalogue's concepts again; custom concepts have no other copy."""
        for concept in concepts:
            if not concept.custom:
                await asyncio.to_thread(self._catalogue.concept_message, concept.name, self._store)

    async def _run(self, audit_id: str, unit: Unit) -> tuple[UnitResult, str]:
        """Run a unit; return its result, and the profile of the attacks' replica that computed it (empty: a probe)."""
        result, profile = UnitResult(), ""
        told = 0.0
        if unit.evaluation in self._attacks:
            stream = ATTACK.stream("Attack", AttackRequest(unit=unit))
        else:
            stream = PROBING.stream("Probe", ProbeRequest(unit=unit))
        async with aclosing(stream) as responses:
            async for response in responses:
                event = response.event
                profile = getattr(response, "numerics_profile", "")
                match event.WhichOneof("event"):
                    case "observation":
                        result.observations.append(_placed(event.observation, unit))
                    case "finding":
                        result.findings.append(_placed(event.finding, unit))
                    case "progress" if time.monotonic() - told >= _PROGRESS_SECONDS:
                        told = time.monotonic()
                        await self._progress(audit_id, unit, event.progress)
        return result, profile

    async def _progress(self, audit_id: str, unit: Unit, progress: Any) -> None:
        event = UnitProgress(
            unit=unit.id, evaluation=unit.evaluation, role=unit.role, step=progress.step, steps=progress.steps
        )
        if progress.HasField("loss"):
            event.loss = progress.loss
        if progress.HasField("success"):
            event.success = progress.success
        try:
            await self._database.transitions.progress(audit_id, AuditEvent(unit_progress=event))
        except Exception as error:
            if not is_transient(error):
                raise
            # A unit must not be computed again only because its progress could not be reported.
            _logger.warning("the progress could not be reported to watchers", exc_info=True)
            return
        await self._notifications.announce()


def _placed(found: Found, unit: Unit) -> Found:
    """Say of an observation or finding which access its unit had, if guards could act at all."""
    if unit.access:
        found.access = unit.access
    return found


def _with_role(error: UneraseError, unit: Unit) -> UneraseError:
    """Let an error about a unit's model say which role the model has in the audit."""
    if not unit.model or error.metadata.get("model") != unit.model:
        return error
    role = ModelRole.Name(unit.role).removeprefix("MODEL_ROLE_").lower()
    return error.extended(f"the {role}: {error.message}", role=role)
