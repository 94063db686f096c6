"""What a flood costs: the coordinator's memory under streams that only wait, readers that do not read and connections
that do not speak, and how long others wait for an answer meanwhile.

Five tenants, each with an audit under way and as many watches of it as one may have: 10,000 streams in all. A sixth
asks for one audit again and again from a process of its own. Memory is the resident set of the coordinator's replica.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench.figures import figure
from bench.processes import Running, backend
from unerase import AsyncClient, AuditSpec, Battery, Client, ClientSettings
from unerase.v1.audits_pb2 import GetReportRequest, ReportFormat, WatchAuditRequest
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.coordinator.api.call_limits import CALLS, WATCHES

TENANTS = 5
# gRPC lets a connection have so many; the rest of a tenant's takes a second one.
STREAMS_OF_CONNECTION = 1000
SILENT = 1000
ASKED_SECONDS = 10.0
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def measure() -> list[dict[str, Any]]:
    """Return the figures whose names begin with `hostile.`."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = _tokens(Path(folder) / "tokens.json")
        with backend(Path(folder) / "served", "--tokens", str(Path(folder) / "tokens.json")) as running:
            figures = asyncio.run(_measured(running, tokens))
    return [figure(f"hostile.{name}", value) for name, value in figures.items()]


async def _measured(running: Running, tokens: Sequence[str]) -> dict[str, float]:
    replica = _replica(running)
    *flooding, asking = tokens
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        loop = asyncio.get_running_loop()
        finished = await loop.run_in_executor(other, _audit_of, running.address, asking)

        async def latency(*, seconds: float = ASKED_SECONDS) -> list[float]:
            return await loop.run_in_executor(other, _asked, running.address, asking, finished, seconds)

        async with AsyncExitStack() as stack:
            # The tenants' audits run from here on, so that the figures differ by the flood alone.
            audits = [await _begin(stack, running.address, token) for token in flooding]
            calm, before = await latency(), _resident_mb(replica)
            async with _flood(running.address, flooding, audits):
                flooded, during = await latency(), _resident_mb(replica)
        slow = await _slow_readers(running.address, asking, finished, replica)
        silent_latency, silent_seconds = await asyncio.gather(latency(seconds=5.0), _silent(running.address))
        after = _resident_mb(replica)
    return {
        "rss_before_mb": round(before),
        f"rss_{TENANTS * WATCHES}_streams_mb": round(during),
        "kb_per_stream": round((during - before) * 1000 / (TENANTS * WATCHES), 1),
        "get_audit_calm_ms": _ms(statistics.median(calm)),
        "get_audit_flooded_ms": _ms(statistics.median(flooded)),
        "get_audit_flooded_worst_ms": _ms(max(flooded)),
        f"rss_{CALLS}_slow_readers_mb": round(slow),
        "rss_after_mb": round(after),
        f"get_audit_{SILENT}_silent_connections_worst_ms": _ms(max(silent_latency)),
        "silent_connection_seconds": round(silent_seconds, 1),
    }


def _tokens(file: Path) -> list[str]:
    command = [sys.executable, "-m", "unerase", "tokens", "create", "--file", str(file)]
    scopes = ["--scope", "audit:read", "--scope", "audit:write"]
    return [
        subprocess.run(  # noqa: S603
            [*command, f"tenant-{number}", "--tenant", f"tenant-{number}", *scopes],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for number in range(TENANTS + 1)
    ]


def _replica(running: Running) -> psutil.Process:
    for process in running.process.children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica:coordinator:"):
            return process
    raise RuntimeError("the coordinator has no replica")


def _resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def _spec(*, cases: int, steps: int) -> AuditSpec:
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt")], allow_incomplete=True)
    return AuditSpec(subject="testbed/uce", concept="hourglass", cases=cases, steps=steps, seed_base=1, battery=battery)


def _audit_of(address: str, token: str) -> str:
    """Have a small audit made and return its id."""
    with Client(address, settings=ClientSettings(token=token)) as client:
        return client.audit(_spec(cases=24, steps=2)).id


def _asked(address: str, token: str, audit_id: str, seconds: float) -> list[float]:
    """Ask for an audit again and again; the seconds of each answer."""
    with Client(address, settings=ClientSettings(token=token)) as client:
        client.get_audit(audit_id)
        took: list[float] = []
        until = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < until:
            client.get_audit(audit_id)
            took.append(time.perf_counter() - begun)
        return took


async def _begin(stack: AsyncExitStack, address: str, token: str) -> str:
    """Begin an audit that goes on until the stack is left."""
    client = await stack.enter_async_context(AsyncClient(address, settings=ClientSettings(token=token)))
    audit = await client.create_audit(_spec(cases=512, steps=900))
    stack.push_async_callback(client.cancel, audit.id)
    return audit.id


@asynccontextmanager
async def _flood(address: str, tokens: Sequence[str], audits: Sequence[str]) -> AsyncIterator[None]:
    """Hold every watch that the tenants may have, each after its first event; one more is refused."""
    async with AsyncExitStack() as stack:
        calls: list[Any] = []
        for token, audit in zip(tokens, audits, strict=True):
            request, metadata = WatchAuditRequest(id=audit), (("authorization", f"Bearer {token}"),)
            for _ in range(0, WATCHES, STREAMS_OF_CONNECTION):
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OPTIONS))
                stub = AuditServiceStub(channel)
                opened = [stub.WatchAudit(request, metadata=metadata) for _ in range(STREAMS_OF_CONNECTION)]
                await asyncio.gather(*(call.read() for call in opened))
                calls += opened
            if await stub.WatchAudit(request, metadata=metadata).code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise RuntimeError(f"a tenant had {WATCHES + 1} watches")
        yield
        if len(calls) != TENANTS * WATCHES or any(call.done() for call in calls):
            raise RuntimeError("a watch ended early")


async def _slow_readers(address: str, token: str, audit_id: str, replica: psutil.Process) -> float:
    """Return the coordinator's memory while as many as may be have asked for a report and do not read it."""
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        request = GetReportRequest(id=audit_id, format=ReportFormat.REPORT_FORMAT_HTML)
        calls = [AuditServiceStub(channel).GetReport(request, metadata=metadata) for _ in range(CALLS)]
        await asyncio.gather(*(call.read() for call in calls))
        return _resident_mb(replica)


async def _silent(address: str) -> float:
    """Connect and say nothing; the seconds after which the server has closed the last of them."""
    host, _, port = address.rpartition(":")
    begun = time.perf_counter()
    silent = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(SILENT)))
    await asyncio.gather(*(reader.read() for reader, _ in silent))
    seconds = time.perf_counter() - begun
    for _, writer in silent:
        writer.close()
    return seconds


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
