"""The coordinator as a Ray Serve application: one replica that owns the gRPC server, the database and the workflows.

It has no RPCs of Serve's own. Its identity lies in its state folder, so that a replica that takes the place of a killed
one recovers that one's workflows, and no other coordinator's; a lock on the folder keeps two replicas apart.
"""

import asyncio
import fcntl
import logging
import time
import uuid
from pathlib import Path
from typing import IO, Any

from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig, DBOSPortableJSONSerializer
from ray import serve
from sqlalchemy.engine import make_url

from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.audits import AuditServicer
from unerase_backend.coordinator.changes import Changes
from unerase_backend.coordinator.database import Database, create_engine
from unerase_backend.coordinator.exposition import serve_metrics
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.models import ModelServicer
from unerase_backend.coordinator.rooms import ROOMS
from unerase_backend.coordinator.server import Server
from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.coordinator.workflow import CURRENT, Auditor
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.errors import UnavailableError
from unerase_backend.runtime.handles import remote_classify, rooms_serving

_logger = logging.getLogger(__name__)

# DBOS recovers only workflows of its own version: it changes when the order of a workflow's steps does, no sooner.
_WORKFLOW_VERSION = "1"
_LOCK_SECONDS = 60.0
_HEALTH_SECONDS = 1.0


class Coordinator:
    """The ingress of application "coordinator"."""

    async def __init__(self, settings: CoordinatorSettings) -> None:  # type: ignore[misc]
        gate = Gate(Path(settings.tokens) if settings.tokens else None)
        certificates = Certificates.of(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        state = Path(settings.state)
        self._settings = settings
        self._lock = await _locked(state)
        serializer = DBOSPortableJSONSerializer()
        urls = _database_urls(settings, state)
        engine = create_engine(urls["async"])
        self._database = Database(engine)
        await self._database.migrate()
        catalogue = await asyncio.to_thread(Catalogue.load, settings.catalogues)
        store = ArtifactStore(settings.artifacts)
        metrics, changes = Metrics(), Changes()
        self._auditor = CURRENT.auditor = Auditor(
            self._database,
            await AsyncSQLAlchemyDatasource.create(urls["async"], engine=engine, serializer=serializer),
            catalogue,
            store,
            metrics,
            changes,
            concurrent_units=settings.concurrent_units,
            retry_seconds=settings.unit_retry_seconds,
        )
        DBOS(
            config=DBOSConfig(
                name="unerase",
                system_database_url=urls["dbos"],
                application_version=_WORKFLOW_VERSION,
                executor_id=_identity(state / "executor"),
                serializer=serializer,
                log_level="WARNING",
            )
        )
        # On this loop, so that workflows that are recovered run here as well.
        DBOS.launch()
        # An audit that was accepted in the moment of a crash may have no workflow yet.
        for audit_id in await self._database.active():
            await self._auditor.start(audit_id)
        await self._auditor.announce()
        self._stop_metrics = (
            serve_metrics(metrics, gate, settings.host, settings.metrics_port, certificates)
            if settings.metrics_port
            else None
        )
        audits = AuditServicer(self._auditor, self._database, catalogue, store, changes)
        self._server = Server(audits, ModelServicer(catalogue, store, self._database, remote_classify()), metrics, gate)
        await self._server.start(settings.host, settings.port, certificates)
        self._following = asyncio.create_task(self._follow_rooms())
        _logger.info("listening on %s:%d", settings.host, settings.port)

    async def _follow_rooms(self) -> None:
        """Keep the health of the rooms' services as Serve's controller sees their replicas."""
        while True:
            try:
                await self._server.show(await asyncio.to_thread(rooms_serving, ROOMS))
            except Exception:
                # Without its controller Serve still routes calls; the last answer stands.
                _logger.warning("Serve's controller does not say how the rooms are", exc_info=True)
            await asyncio.sleep(_HEALTH_SECONDS)

    async def __del__(self) -> None:
        """Drain: calls end or are cut off after the grace period; workflows wait for the next replica."""
        following = getattr(self, "_following", None)
        if following is not None:
            following.cancel()
        server = getattr(self, "_server", None)
        if server is not None:
            await server.stop(self._settings.shutdown_grace_seconds)
        auditor = getattr(self, "_auditor", None)
        if auditor is not None:
            await auditor.close()
            await asyncio.to_thread(DBOS.destroy)
            await self._database.close()
        stop_metrics = getattr(self, "_stop_metrics", None)
        if stop_metrics is not None:
            await asyncio.to_thread(stop_metrics)
        lock = getattr(self, "_lock", None)
        if lock is not None:
            lock.close()


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


def _identity(path: Path) -> str:
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text().strip()


def _database_urls(settings: CoordinatorSettings, state: Path) -> dict[str, str]:
    database = settings.database()
    if not database:
        # Two files: DBOS reads its own while a unit's transaction holds the lock of ours.
        return {
            "async": f"sqlite+aiosqlite:///{state / 'audits.sqlite'}",
            "dbos": f"sqlite:///{state / 'workflows.sqlite'}",
        }
    url = make_url(database)
    plain, driven = url.set(drivername="postgresql"), url.set(drivername="postgresql+psycopg")
    return {
        "async": driven.render_as_string(hide_password=False),
        "dbos": plain.render_as_string(hide_password=False),
    }


def build(args: CoordinatorSettings) -> serve.Application:
    """Build the application from the `args` of a Serve config."""
    deployment = serve.deployment(
        Coordinator,
        name="coordinator",
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=3,
        # Serve kills what has not drained by then; the server's own grace comes first.
        graceful_shutdown_timeout_s=args.shutdown_grace_seconds + 15,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(args)
