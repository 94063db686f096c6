"""A coordinator: the parts of this room, built and started in their order, and ended in the reverse.

A lock on its state folder keeps two coordinators apart, so one that replaces a killed one recovers its workflows at
once. Where coordinators share a database, a coordinator also takes over the workflows of others whose lease has run
out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig, DBOSPortableJSONSerializer
from sqlalchemy.engine import make_url

from unerase_backend.catalogue.opening import open_catalogue
from unerase_backend.checking.process import check_in_process, register_in_process
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.api.campaign_service import CampaignServicer
from unerase_backend.coordinator.api.metrics_server import serve_metrics
from unerase_backend.coordinator.api.model_registration import ModelRegistrations
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.api.rooms_proxy import ROOMS
from unerase_backend.coordinator.api.server import Server
from unerase_backend.coordinator.api.server_service import Allowed, ServerServicer
from unerase_backend.coordinator.campaigns.answers import Answers
from unerase_backend.coordinator.campaigns.conclusion import CampaignConclusion
from unerase_backend.coordinator.campaigns.creation import Creation
from unerase_backend.coordinator.campaigns.removal import CampaignRemoval
from unerase_backend.coordinator.campaigns.reports import CampaignReports
from unerase_backend.coordinator.campaigns.workflow import CURRENT_CAMPAIGNS, CampaignRunner
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.registrations import Registrations, default_at_once
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.execution.workflow import CURRENT, Auditor
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.coordinator.state_folder import StateFolder
from unerase_backend.coordinator.storage.connections import Connections
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_workflow_engine, on_full_disk
from unerase_backend.coordinator.storage.errors import domain_error
from unerase_backend.coordinator.storage.leases import Leases
from unerase_backend.coordinator.webhooks.admission import WebhookAdmission
from unerase_backend.coordinator.webhooks.delivery import Deliveries, sending
from unerase_backend.coordinator.webhooks.signing import Secrets
from unerase_backend.runtime import tracing
from unerase_backend.runtime.access import Gate, Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.encryption import Certificates
from unerase_backend.runtime.handles import remote_classify, rooms_serving
from unerase_backend.runtime.telemetry import configure_telemetry

_logger = logging.getLogger(__name__)

# DBOS recovers only workflows of this version. Change it when the order of a workflow's steps changes, and only then.
_WORKFLOW_VERSION = "1"
_THREADS = 64
_HEALTH_SECONDS = 1.0
_ENDED_SECONDS = 1.0
_LEFT_SECONDS = 5.0
_WEBHOOK_SECONDS = 1.0
_FORGOTTEN_SECONDS = 60.0
_ESTIMATES_SECONDS = 10.0
_COUNT_SECONDS = 5.0
# Rare, because it looks at every artefact.
_EXPIRE_SECONDS = 6 * 3600.0


class RunningCoordinator:
    """The gRPC server, the database and the workflows."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        configure_telemetry("coordinator", settings)
        self._settings = settings

    async def begin(self) -> None:
        """Start everything, and return once callers are answered; after an error, `end` is due all the same."""
        settings = self._settings
        self._gate = Gate(Path(settings.tokens) if settings.tokens else None)
        self._certificates = Certificates.of(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        self._folder = await StateFolder.locked(Path(settings.state))
        # DBOS blocks threads while the database is gone or its disk is full; there must be enough for other work.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        self._metrics = Metrics()
        self._store = ArtifactStore(settings.artifacts)
        self._catalogue = await asyncio.to_thread(open_catalogue, settings, self._store, weights=False)
        if Path(settings.artifacts).is_absolute():
            self._metrics.measure_disk(settings.artifacts)
        await self._begin_storage()
        notifications = Notifications(self._database.audits.sequences)
        of_campaigns = Notifications(self._database.campaigns.sequences)
        await self._begin_execution(notifications, of_campaigns)
        await self._begin_serving(notifications, of_campaigns)
        _logger.info("listening on %s:%d", settings.host, settings.port)

    async def _begin_storage(self) -> None:
        """Connect to the database and take this coordinator's lease."""
        settings, urls = self._settings, self._database_urls()
        self._connections = Connections(urls["async"], settings.lease_seconds)
        self._workflow_engine = create_workflow_engine(
            urls["dbos"], settings.lease_seconds, self._connections.sizes.workflows
        )
        for watched in (*self._connections.engines(), self._workflow_engine):
            on_full_disk(watched, self._meet_full_disk)
        self._database = Database(self._connections)
        await self._database.migrate()
        self._leases = Leases(self._connections, self._folder.identity, settings.lease_seconds)
        await self._leases.begin()

    async def _begin_execution(self, notifications: Notifications, of_campaigns: Notifications) -> None:
        """Start DBOS, and continue the audits and campaigns that an earlier coordinator left behind."""
        settings, serializer, urls = self._settings, DBOSPortableJSONSerializer(), self._database_urls()
        self._auditor = CURRENT.auditor = Auditor(
            self._database,
            self._connections,
            await AsyncSQLAlchemyDatasource.create(
                urls["async"], engine=self._connections.steps, serializer=serializer
            ),
            self._catalogue,
            self._store,
            self._metrics,
            notifications,
            concurrent_units=settings.concurrent_units,
            retry_seconds=settings.unit_retry_seconds,
        )
        self._admission = Admission(
            self._auditor, self._database, self._catalogue, self._store, self._quota, settings.cost_limits()
        )
        self._conclusion = CampaignConclusion(self._database, self._store)
        self._campaigns = CURRENT_CAMPAIGNS.runner = CampaignRunner(
            self._database,
            self._auditor,
            self._admission,
            self._conclusion,
            of_campaigns,
            self._metrics,
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
        # Called on this event loop, so that recovered workflows run on it as well.
        DBOS.launch()
        self._registrations = Registrations(
            self._database,
            self._store,
            self._metrics,
            partial(register_in_process, settings),
            checker=self._leases.id,
            retry_seconds=settings.unit_retry_seconds,
            at_once=settings.registrations_at_once or default_at_once(),
        )
        # Workflows of version 0.1.0 have the identity of the folder as their executor.
        await self._auditor.take_over([self._folder.identity, *await self._leases.dead()])
        await self._campaigns.begin_forgotten()
        await self._auditor.announce()

    async def _begin_serving(self, notifications: Notifications, of_campaigns: Notifications) -> None:
        """Start the gRPC server, /metrics and the periodic tasks."""
        settings, gate = self._settings, self._gate
        self._stop_metrics = (
            serve_metrics(self._metrics, gate, settings.host, settings.metrics_port, self._certificates)
            if settings.metrics_port
            else None
        )
        webhooks = self._prepare_webhooks()
        retention = Retention(self._database, self._store, settings.retention_days)
        self._removal = CampaignRemoval(self._database, retention, settings.retention_days)
        audits = AuditServicer(
            self._auditor, self._database, self._store, notifications, retention, self._admission, webhooks
        )
        campaigns, models = self._campaign_servicer(of_campaigns, webhooks), self._model_service()
        costs = settings.cost_limits()
        info = ServerServicer(self._auditor.units.descriptions, costs, self._quota, self._allowed(webhooks))
        self._server = Server(audits, campaigns, models, info, self._metrics, gate, domain_error)
        await self._server.start(settings.host, settings.port, self._certificates)
        self._background = [
            asyncio.create_task(_every(seconds, act, trouble))
            for seconds, act, trouble in (
                (
                    _HEALTH_SECONDS,
                    self._show_rooms,
                    "the health of the rooms could not be read from Serve",
                ),
                (settings.lease_seconds / 3, self._keep_lease, "the lease could not be renewed; trying again"),
                (_EXPIRE_SECONDS, retention.expire, "expired audits and artefacts could not be removed"),
                (_EXPIRE_SECONDS, self._removal.expire, "expired campaigns could not be removed"),
                (_COUNT_SECONDS, self._campaigns.count, "the campaigns could not be counted"),
                (_ESTIMATES_SECONDS, self._auditor.estimates.synchronise, "the durations of units could not be saved"),
                (_ENDED_SECONDS, self._auditor.stop_ended, "audits that ended elsewhere could not be looked up"),
                (_LEFT_SECONDS, self._registrations.begin_left, "registrations of models could not be looked up"),
                (_WEBHOOK_SECONDS, self._deliveries.deliver, "webhooks that are due could not be looked up"),
                (_EXPIRE_SECONDS, self._deliveries.forget, "records of webhooks could not be removed"),
                (_FORGOTTEN_SECONDS, self._auditor.begin_forgotten, "audits without a workflow could not be looked up"),
                (_FORGOTTEN_SECONDS, self._campaigns.begin_forgotten, "campaigns could not be looked up"),
            )
        ]

    def _prepare_webhooks(self) -> WebhookAdmission:
        """Prepare what delivers webhooks, and return what admits them."""
        settings = self._settings
        secrets = Secrets(Path(settings.webhook_secrets) if settings.webhook_secrets else None)
        hosts, send = settings.webhook_targets(), sending(settings.webhook_ca)
        self._deliveries = Deliveries(self._database.webhooks, hosts, secrets, self._metrics, send)
        return WebhookAdmission(hosts, secrets)

    def _campaign_servicer(self, notifications: Notifications, webhooks: WebhookAdmission) -> CampaignServicer:
        reports = CampaignReports(self._database, self._store, self._conclusion)
        return CampaignServicer(
            self._database,
            Creation(self._database, self._admission, self._campaigns, webhooks),
            self._campaigns,
            self._removal,
            notifications,
            reports,
            Answers(self._database, self._store, self._conclusion, reports),
            self._store,
        )

    def _quota(self, tenant: str) -> Quota:
        return self._gate.quota(tenant) or self._settings.quota()

    def _model_service(self) -> ModelServicer:
        """Return the service of models, both the catalogue's and registered ones."""
        check = partial(check_in_process, self._settings)
        registered = ModelRegistrations(
            self._catalogue, self._store, self._database, self._registrations, self._settings, self._quota
        )
        classify, descriptions = remote_classify(), self._auditor.units.descriptions
        return ModelServicer(self._catalogue, self._store, self._database, classify, check, registered, descriptions)

    def _allowed(self, webhooks: WebhookAdmission) -> Allowed:
        """Return what the settings allow, as callers are told."""
        roots, organisations = self._settings.model_roots, self._settings.model_organisations
        features = {"model-registration": roots or organisations, "webhooks": webhooks.hosts.names}
        return Allowed([name for name, there in features.items() if there], roots, organisations, webhooks.hosts.names)

    def _database_urls(self) -> dict[str, str]:
        database = self._settings.database()
        if not database:
            # Two files, because DBOS reads its own while a unit's transaction holds the lock of ours.
            return {
                "async": f"sqlite+aiosqlite:///{self._folder.path / 'audits.sqlite'}",
                "dbos": f"sqlite:///{self._folder.path / 'workflows.sqlite'}",
            }
        url = make_url(database).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        return {"async": url, "dbos": url}

    def _meet_full_disk(self) -> None:
        self._metrics.full_disk_waits.inc()
        _logger.warning("the database's disk is full; make room on it, and waiting audits resume by themselves")

    async def _show_rooms(self) -> None:
        """Set the health of the rooms' services to what Serve's controller says of their replicas."""
        serving = await asyncio.to_thread(rooms_serving, ROOMS)
        self._metrics.set_rooms({room.application: serves for room, serves in serving.items()})
        await self._server.show(serving)

    async def _keep_lease(self) -> None:
        """Renew the lease of this coordinator, and take over from coordinators that did not renew theirs."""
        if not await self._leases.renew():
            _logger.warning(
                "the lease of this coordinator had run out; another coordinator may have taken over its audits"
            )
        dead = await self._leases.dead()
        if dead:
            _logger.warning("%s gone; taking over the audits", counted(len(dead), "coordinator is", "coordinators are"))
            await self._auditor.take_over(dead)
            await self._campaigns.begin_forgotten()
            await self._leases.forget(dead)

    async def end(self) -> None:
        """Drain: calls end, or are cut off after the grace period; the next replica continues the workflows."""
        for repeated in getattr(self, "_background", ()):
            repeated.cancel()
        server = getattr(self, "_server", None)
        if server is not None:
            await server.stop(self._settings.shutdown_grace_seconds)
        registrations = getattr(self, "_registrations", None)
        if registrations is not None:
            await registrations.close()
        deliveries = getattr(self, "_deliveries", None)
        if deliveries is not None:
            await deliveries.close()
        auditor = getattr(self, "_auditor", None)
        for part in (getattr(self, "_removal", None), getattr(self, "_campaigns", None)):
            if part is not None:
                await part.close()
        if auditor is not None:
            await auditor.close()
            await asyncio.to_thread(DBOS.destroy)
            await self._leases.end()
            await self._database.close()
            self._workflow_engine.dispose()
        stop_metrics = getattr(self, "_stop_metrics", None)
        if stop_metrics is not None:
            await asyncio.to_thread(stop_metrics)
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.unlock()
        await asyncio.to_thread(tracing.flush)


async def _every(seconds: float, act: Callable[[], Awaitable[None]], trouble: str) -> None:
    """Call `act` periodically; an error is logged, and the next call tries again."""
    while True:
        try:
            await act()
        except Exception:
            _logger.warning(trouble, exc_info=True)
        await asyncio.sleep(seconds)
