"""Runs the backend on this machine: starts Ray on loopback, and the five applications on it.

`unerase serve` calls `main` with its arguments. `run` takes settings instead and runs until a signal; `start` returns a
running backend, which its caller stops.
"""

import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Ray and the libraries read these when they are imported; values that are already set stay.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
# Ray would run its workers at niceness 15, so that anything else on the machine would slow an audit down.
os.environ.setdefault("RAY_worker_niceness", "0")
# Where workers import for themselves, they do this while Ray and Serve's controller still start.
os.environ.setdefault("RAY_preload_python_modules", "ray.serve")
# What Ray does all the time though nothing has changed, less often (docs/performance.md).
os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.25")
os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "1000")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
# Waiting threads spin for some microseconds, not for ever, because the processes share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pydantic import BaseModel

from unerase._commands.failing import ExitCode, fail
from unerase_backend import compute_plan, machine, serve_options
from unerase_backend.catalogue import Catalogue
from unerase_backend.checking.at_start import check_catalogues, unusable_models
from unerase_backend.compute_plan import ComputePlan
from unerase_backend.coordinator.settings import ServiceSettings
from unerase_backend.runtime.settings import SharedSettings
from unerase_backend.serve_errors import all_running, definite_errors, deployment_errors, has_failed
from unerase_backend.serve_settings import ServeSettings, read_settings
from unerase_backend.workers.starting import ENTRY, Template

_POLLING_SECONDS = 0.2
# Of an audit's work pictures can wait most easily: an attack searches one step after another on one thread, and is the
# longest chain. The judges' and the coordinator's work is what others wait for.
_PICTURES_NICENESS = 5
# Serve's controller, and a replica of each room but generation.
_OTHER_WORKERS = 5


@dataclass(frozen=True)
class Backend:
    """A running backend."""

    address: str
    metrics_url: str
    """Empty if /metrics is not served."""
    rooms_metrics_url: str
    plan: ComputePlan
    stop: Callable[[], None]
    """Drains and ends everything, including Ray."""


class DeploymentError(RuntimeError):
    """An application could not be deployed; the message has the error of its own process."""


def start(settings: ServeSettings) -> Backend:
    """Start Ray and the five applications, and return once they answer.

    Raises:
        ValueError: the device is not there, or the largest model does not fit.
        DeploymentError: an application could not be deployed, for example because the port is taken.
    """
    os.environ["RAY_AUTH_MODE"] = settings.ray_auth
    if settings.ray_auth == "token":
        # Otherwise Ray writes a token into the home folder, where every user of the machine can read it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with ExitStack() as running:
        # What has begun to work with a GPU cannot be copied, and libraries may ask for one when they are imported.
        copied = settings.device == "cpu" and sys.platform == "linux"
        template = running.enter_context(Template()) if copied else None
        plan = plan_of(settings)
        import ray
        from ray import serve

        host = settings.host
        port = settings.port or _free_port(host)
        metrics_port = _free_port(host) if settings.metrics_port == 0 else settings.metrics_port or 0
        rooms_metrics_port = settings.rooms_metrics_port or _free_port(host)
        targets = _targets(settings, plan, port, metrics_port, serve.RunTarget)
        with _processes(template):
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=_ray_cpus(plan.generation_replicas, copied=template is not None),
                log_to_driver=False,
                logging_level="WARNING",
                object_store_memory=settings.object_store_mb * 1024 * 1024,
                _metrics_export_port=rooms_metrics_port,
            )
        running.callback(ray.shutdown)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        running.callback(serve.shutdown)
        _deploy(serve, targets, settings)
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if settings.tls_certificate else "http"
        metrics_url = f"{scheme}://{shown}:{metrics_port}/metrics" if metrics_port else ""
        rooms_metrics_url = f"http://127.0.0.1:{rooms_metrics_port}/metrics"
        return Backend(f"{shown}:{port}", metrics_url, rooms_metrics_url, plan, running.pop_all().close)


def _ray_cpus(generation_replicas: int, *, copied: bool) -> int:
    """Return how many CPUs Ray may reserve, which is also how many workers it starts in advance.

    A worker that is a copy starts in no time, so that only what the replicas reserve counts.
    """
    from unerase_backend.runtime.deployment import REPLICA_CPUS

    workers = _OTHER_WORKERS + generation_replicas
    return math.ceil(REPLICA_CPUS * workers) if copied else workers


def _deploy(serve: Any, targets: Sequence[Any], settings: ServeSettings) -> None:
    """Start Serve and the applications, and wait until they run.

    Raises:
        DeploymentError: an application could not be deployed.
    """
    try:
        # No Serve proxy, because clients use the coordinator's own server.
        serve.start(proxy_location="Disabled", logging_config=_serves_own_logs(settings))
        serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        _wait(serve.status, len(targets))
    except DeploymentError:
        raise
    except RuntimeError as error:
        raise DeploymentError("\n".join(deployment_errors(serve.status())) or str(error)) from error


@contextmanager
def _processes(template: Template | None) -> Iterator[None]:
    """Meanwhile Ray starts without what scales a cluster, copies the workers' output, and reports how Ray is used.

    None of these processes has anything to do here. `ray start` has options for the first two (`--no-monitor`,
    `--include-log-monitor`), and `ray.init` has not; the third is what is left of a dashboard that is not included.
    Workers are copies of the template, if there is one.
    """
    from ray._private import node, parameter

    parameters, report = parameter.RayParams, node.Node.start_api_server
    entry: dict[str, str] = {}
    if template is not None:
        os.environ.update(template.environment)
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
        entry["worker_path"] = ENTRY
    parameter.RayParams = partial(parameters, no_monitor=True, include_log_monitor=False, **entry)
    node.Node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = parameters, report


def _wait(status: Callable[[], Any], count: int) -> None:
    """Wait until all `count` applications run. An error that another try would meet again ends it at the first one.

    Raises:
        DeploymentError: an application could not be deployed.
    """
    while not all_running(shown := status(), count):
        if reasons := definite_errors(shown) or (deployment_errors(shown) if has_failed(shown) else []):
            raise DeploymentError("\n".join(reasons))
        time.sleep(_POLLING_SECONDS)


def main(arguments: Sequence[str]) -> None:
    """Run `unerase serve` with these arguments.

    Raises:
        typer.BadParameter: an argument is unknown or has a bad value; typer has other errors of this kind.
        ValueError: a setting is bad or does not fit another one, or the catalogue is wrong.
        typer.Exit: an application could not be deployed; stderr has the reason.
    """
    command = serve_options.command(run)
    try:
        with command.make_context("unerase serve", list(arguments)) as context:
            command.invoke(context)
    except DeploymentError as error:
        fail(str(error), ExitCode.UNEXPECTED)


def run(*, explain: bool | None = None, **options: Any) -> None:
    """Run a backend until SIGTERM or SIGINT; `options` are fields of `ServeSettings`, with None for the default.

    With `explain`, print how it would compute and what that rests on, and run nothing.
    """
    settings = read_settings(**options)
    for warning in unusable_models(check_catalogues(settings.catalogues)):
        print(warning, file=sys.stderr, flush=True)
    if explain:
        print("\n".join(plan_of(settings).explained()))
        return
    ended = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    backend = start(settings)
    # Set after Ray has installed its own handlers.
    for number in before:
        signal.signal(number, lambda *_: ended.set())
    try:
        print(f"unerase listens on {backend.address}", flush=True)
        if backend.metrics_url:
            print(f"metrics at {backend.metrics_url}", flush=True)
        print(f"the rooms' metrics at {backend.rooms_metrics_url}", flush=True)
        print("\n".join(backend.plan.lines()), flush=True)
        # A signal that the system gives to another thread of Ray's does not end a wait without a limit.
        while not ended.wait(1):
            pass
    finally:
        backend.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def plan_of(settings: ServeSettings) -> ComputePlan:
    """Return how the rooms compute: what the settings say, and the rest chosen.

    Raises:
        ValueError: the device is not there, or the largest model does not fit.
        InvalidRequestError: a catalogue holds a bad field.
    """
    load = compute_plan.load_of(Catalogue.load(settings.catalogues))
    return compute_plan.plan_of(load, settings, machine.cards() if settings.device == "cuda" else ())


def _targets(
    settings: ServeSettings, plan: ComputePlan, port: int, metrics_port: int, target: Callable[..., Any]
) -> list[Any]:
    from unerase_backend.attack import deployment as attack
    from unerase_backend.attack.settings import AttackSettings
    from unerase_backend.classification import deployment as classification
    from unerase_backend.classification.settings import ClassificationSettings
    from unerase_backend.coordinator import deployment as coordinator
    from unerase_backend.coordinator.settings import CoordinatorSettings
    from unerase_backend.generation import deployment as generation
    from unerase_backend.generation.settings import GenerationSettings
    from unerase_backend.probing import deployment as probing
    from unerase_backend.probing.settings import ProbingSettings

    data = settings.data_dir.expanduser().resolve()
    common = _common(settings, data)
    service = _of(settings, ServiceSettings)
    if "concurrent_units" not in settings.model_fields_set:
        service["concurrent_units"] = plan.concurrent_units
    coordination = CoordinatorSettings(
        **common,
        **service,
        state=str(data / "coordinator"),
        port=port,
        metrics_port=metrics_port,
    )
    applications = {
        "classification": classification.build(
            ClassificationSettings(**common, batch_size=settings.judge_batch, gpu_share=plan.judge_share)
        ),
        "generation": generation.build(
            GenerationSettings(
                **common | {"torch_threads": plan.generation_threads},
                replicas=plan.generation_replicas,
                gpu_share=plan.generation_share,
                niceness=0 if settings.device == "cuda" else _PICTURES_NICENESS,
                batch_rows=plan.shapes.batch_rows,
                decode_batch=plan.shapes.decode_batch,
                models_in_memory=plan.shapes.models_in_memory,
            )
        ),
        "attack": attack.build(
            AttackSettings(
                **common,
                gpu_share=plan.attack_share,
                gradient_rows=plan.shapes.gradient_rows,
                encode_batch=plan.shapes.decode_batch,
                models_kept=plan.shapes.models_kept,
                unit_timeout_seconds=settings.attack_timeout_seconds,
            )
        ),
        "probing": probing.build(ProbingSettings(**common)),
        "coordinator": coordinator.build(coordination),
    }
    # Without a route no proxy could serve them, even if one ran.
    return [
        target(application, name=name, route_prefix=None, logging_config=_serves_own_logs(settings))
        for name, application in applications.items()
    ]


def _common(settings: ServeSettings, data: Path) -> dict[str, Any]:
    """Return the settings of all rooms, with what they keep in the folder `data`."""
    return {
        **_of(settings, SharedSettings),
        "artifacts": _url(settings.artifacts) if settings.artifacts else str(data / "artifacts"),
        "logs": str(data / "logs"),
        "digests": str(data / "digests"),
        "model_copies": str(data / "models"),
    }


def _serves_own_logs(settings: ServeSettings) -> dict[str, str]:
    """Return the logging of Serve itself, which goes to the logs of Ray's session."""
    return {"encoding": settings.log_format.upper()}


def _url(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().resolve())


def _of(settings: ServeSettings, shared: type[BaseModel]) -> dict[str, Any]:
    """Return the settings that `shared` declares."""
    return {name: getattr(settings, name) for name in shared.model_fields}


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except (OSError, UnicodeError, TypeError) as error:
            why = getattr(error, "strerror", None) or "it cannot be the name of a host"
            raise ValueError(f"host: {host[:64]!r} is not an address of this machine: {why}") from None
        port: int = probe.getsockname()[1]
        return port
