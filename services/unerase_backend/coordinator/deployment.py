"""The coordinator as a Ray Serve application: one replica that owns the gRPC server, the database and the workflows.

It has no RPCs of Serve's own. A lock on its state folder keeps two replicas apart, so that one that takes the place of
a killed one recovers that one's workflows at once. Where coordinators share a database, one also takes over what
another left behind whose lease has run out.
"""

import asyncio
import fcntl
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig, DBOSPortableJSONSerializer
from ray import serve
from sqlalchemy.engine import make_url

from unerase._files import write_whole
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.audits import AuditServicer
from unerase_backend.coordinator.changes import Changes
from unerase_backend.coordinator.connections import Connections
from unerase_backend.coordinator.database import Database
from unerase_backend.coordinator.exposition import serve_metrics
from unerase_backend.coordinator.leases import Leases
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.models import ModelServicer
from unerase_backend.coordinator.retention import Retention
from unerase_backend.coordinator.rooms import ROOMS
from unerase_backend.coordinator.server import Server
from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.coordinator.tables import create_workflow_engine, on_full_disk
from unerase_backend.coordinator.workflow import CURRENT, Auditor
from unerase_backend.runtime import tracing
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.errors import UnavailableError
from unerase_backend.runtime.handles import remote_classify, rooms_serving
from unerase_backend.runtime.settings import HEALTH_CHECK_PERIOD_SECONDS, HEALTH_CHECK_TIMEOUT_SECONDS
from unerase_backend.runtime.telemetry import configure_telemetry

_logger = logging.getLogger(__name__)

# DBOS recovers only workflows of its own version: it changes when the order of a workflow's steps does, no sooner.
_WORKFLOW_VERSION = "1"
_LOCK_SECONDS = 60.0
_THREADS = 64
_HEALTH_SECONDS = 1.0
_ENDED_SECONDS = 1.0
_FORGOTTEN_SECONDS = 60.0
_ESTIMATES_SECONDS = 10.0
# It looks at every artefact.
_EXPIRE_SECONDS = 6 * 3600.0


class Coordinator:
    """The ingress of application "coordinator"."""

    async def __init__(self, settings: CoordinatorSettings) -> None:  # type: ignore[misc]
        configure_telemetry("coordinator", settings)
        gate = Gate(Path(settings.tokens) if settings.tokens else None)
        certificates = Certificates.of(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        state = Path(settings.state)
        self._settings = settings
        self._lock = await _locked(state)
        # DBOS waits in threads while the database is gone or its disk is full; others have their own meanwhile.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        serializer = DBOSPortableJSONSerializer()
        urls = _database_urls(settings, state)
        connections = Connections(urls["async"], settings.lease_seconds)
        self._workflow_engine = create_workflow_engine(
            urls["dbos"], settings.lease_seconds, connections.sizes.workflows
        )
        self._database = Database(connections)
        await self._database.migrate()
        home = _home(state / "executor")
        self._leases = Leases(connections, home, settings.lease_seconds)
        await self._leases.begin()
        catalogue = await asyncio.to_thread(Catalogue.load, settings.catalogues)
        store = ArtifactStore(settings.artifacts)
        self._metrics, changes = Metrics(), Changes(self._database.sequences)
        for watched in (*connections.engines(), self._workflow_engine):
            on_full_disk(watched, self._meet_full_disk)
        if Path(settings.artifacts).is_absolute():
            self._metrics.measure_disk(settings.artifacts)
        self._auditor = CURRENT.auditor = Auditor(
            self._database,
            connections,
            await AsyncSQLAlchemyDatasource.create(urls["async"], engine=connections.steps, serializer=serializer),
            catalogue,
            store,
            self._metrics,
            changes,
            concurrent_units=settings.concurrent_units,
            retry_seconds=settings.unit_retry_seconds,
        )
        DBOS(
            config=DBOSConfig(
                name="unerase",
                system_database_url=urls["dbos"],
                system_database_engine=self._workflow_engine,
                application_version=_WORKFLOW_VERSION,
                executor_id=self._leases.id,
                serializer=serializer,
                log_level="WARNING",
            )
        )
        # On this loop, so that workflows that are recovered run here as well.
        DBOS.launch()
        # Workflows of version 0.1.0 bear the home's name.
        await self._auditor.take_over([home, *await self._leases.dead()])
        await self._auditor.announce()
        self._stop_metrics = (
            serve_metrics(self._metrics, gate, settings.host, settings.metrics_port, certificates)
            if settings.metrics_port
            else None
        )
        retention = Retention(self._database, store, settings.retention_days)
        quota = settings.quota()
        audits = AuditServicer(
            self._auditor,
            self._database,
            catalogue,
            store,
            changes,
            retention,
            lambda who: gate.quota(who) or quota,
            settings.cost_limits(),
        )
        self._server = Server(
            audits, ModelServicer(catalogue, store, self._database, remote_classify()), self._metrics, gate
        )
        await self._server.start(settings.host, settings.port, certificates)
        self._background = [
            asyncio.create_task(repeated)
            for repeated in (
                _every(_HEALTH_SECONDS, self._show_rooms, "Serve's controller does not say how the rooms are"),
                _every(settings.lease_seconds / 3, self._keep_lease, "the lease could not be renewed"),
                _every(_EXPIRE_SECONDS, retention.expire, "what has had its time could not be removed"),
                _every(
                    _ESTIMATES_SECONDS, self._auditor.estimates.synchronise, "how long units take is not written down"
                ),
                _every(_ENDED_SECONDS, self._auditor.stop_ended, "what ended elsewhere is not known"),
                _every(_FORGOTTEN_SECONDS, self._auditor.begin_forgotten, "what has no workflow is not known"),
            )
        ]
        _logger.info("listening on %s:%d", settings.host, settings.port)

    def _meet_full_disk(self) -> None:
        self._metrics.full_disk_waits.inc()
        _logger.warning("the disk of the database is full; make room there, and what waits goes on by itself")

    async def _show_rooms(self) -> None:
        """Keep the health of the rooms' services as Serve's controller sees their replicas."""
        serving = await asyncio.to_thread(rooms_serving, ROOMS)
        self._metrics.set_rooms({room.application: serves for room, serves in serving.items()})
        await self._server.show(serving)

    async def _keep_lease(self) -> None:
        """Renew the lease of this coordinator, and take over from those that did not renew theirs."""
        if not await self._leases.renew():
            _logger.warning("the lease of this coordinator had run out; its audits may go on elsewhere")
        dead = await self._leases.dead()
        if dead:
            _logger.warning("%d coordinators are gone; their audits go on", len(dead))
            await self._auditor.take_over(dead)
            await self._leases.forget(dead)

    async def __del__(self) -> None:
        """Drain: calls end or are cut off after the grace period; workflows wait for the next replica."""
        for repeated in getattr(self, "_background", ()):
            repeated.cancel()
        server = getattr(self, "_server", None)
        if server is not None:
            await server.stop(self._settings.shutdown_grace_seconds)
        auditor = getattr(self, "_auditor", None)
        if auditor is not None:
            await auditor.close()
            await asyncio.to_thread(DBOS.destroy)
            await self._leases.end()
            await self._database.close()
            self._workflow_engine.dispose()
        stop_metrics = getattr(self, "_stop_metrics", None)
        if stop_metrics is not None:
            await asyncio.to_thread(stop_metrics)
        lock = getattr(self, "_lock", None)
        if lock is not None:
            lock.close()
        await asyncio.to_thread(tracing.flush)


async def _every(seconds: float, act: Callable[[], Awaitable[None]], trouble: str) -> None:
    """Act again and again; what goes wrong once may go well the next time."""
    while True:
        try:
            await act()
        except Exception:
            _logger.warning(trouble, exc_info=True)
        await asyncio.sleep(seconds)


async def _locked(state: Path) -> IO[Any]:
    """Lock the state folder for this process; the lock ends with the process, however that ends."""
    file = _lock_file(state)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                file.close()
                raise UnavailableError("another coordinator has this state folder", reason="STATE_IN_USE") from None
            await asyncio.sleep(0.2)
        else:
            return file


def _lock_file(state: Path) -> IO[Any]:
    state.mkdir(parents=True, exist_ok=True)
    return (state / "lock").open("w")


def _home(path: Path) -> str:
    if not path.exists():
        write_whole(path, uuid.uuid4().hex)
    return path.read_text().strip()


def _database_urls(settings: CoordinatorSettings, state: Path) -> dict[str, str]:
    database = settings.database()
    if not database:
        # Two files: DBOS reads its own while a unit's transaction holds the lock of ours.
        return {
            "async": f"sqlite+aiosqlite:///{state / 'audits.sqlite'}",
            "dbos": f"sqlite:///{state / 'workflows.sqlite'}",
        }
    url = make_url(database).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    return {"async": url, "dbos": url}


def build(args: CoordinatorSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    deployment = serve.deployment(
        Coordinator,
        name="coordinator",
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=HEALTH_CHECK_PERIOD_SECONDS,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_SECONDS,
        # Serve kills what has not drained by then; the server's own grace comes first.
        graceful_shutdown_timeout_s=args.shutdown_grace_seconds + 15,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(args)
