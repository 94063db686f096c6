"""Replicas are killed in the middle of an audit: nothing is lost, nothing is there twice, the content is the same."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import psutil
import pytest

from support.serving import Running
from unerase import Client
from unerase._errors import error_of
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest
from unerase.internal.v1alpha1.generation_pb2_grpc import GenerationServiceStub
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED
from unerase.v1.types_pb2 import Observation

from .conftest import await_health, small_spec


def _content(client: Client, audit_id: str) -> bytes:
    return client.report_message(audit_id).content.SerializeToString(deterministic=True)


def _observations(backend: Running, audit_id: str) -> list[bytes]:
    """Return the rows as they stand in the database, each with what says which sample it is."""
    with sqlite3.connect(backend.data / "coordinator" / "audits.sqlite") as connection:
        rows = connection.execute(
            "select message from unerase_observations where audit = ? order by unit, ordinal", (audit_id,)
        )
        return [row[0] for row in rows]


@contextmanager
def _kept_down(backend: Running, room: str) -> Iterator[None]:
    """Kill the room's replicas, and each that comes in their place."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.1):
            for process in backend.replicas(room):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield
    finally:
        ended.set()
        killing.join()


@pytest.fixture(scope="module")
def undisturbed(backend: Running, client: Client) -> tuple[bytes, list[bytes], int]:
    backend.forget()
    audit = client.create_audit(small_spec(seed_base=99, cases=16))
    events = list(client.watch(audit.id, timeout=120))
    assert events[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
    return _content(client, audit.id), _observations(backend, audit.id), audit.units_total


@pytest.mark.parametrize("killed", ["coordinator", "generation", "probing"])
def test_a_killed_replica_changes_nothing(
    backend: Running, client: Client, undisturbed: tuple[bytes, list[bytes], int], killed: str
) -> None:
    content, observations, units = undisturbed
    backend.forget()
    # A coordinator that is killed takes its figures with it.
    survived = 0.0 if killed == "coordinator" else backend.metric("unerase_kills_survived_total", room=killed)
    audit = client.create_audit(small_spec(seed_base=99, cases=16))
    done = []
    for event in client.watch(audit.id, timeout=120):
        if event.WhichOneof("event") == "unit_done":
            done.append(event.unit_done.unit)
            if len(done) == 1:
                backend.kill(killed)
    assert len(done) == len(set(done)) == units
    ended = client.get_audit(audit.id)
    assert (ended.state, ended.units_done) == (AUDIT_STATE_SUCCEEDED, units)
    assert backend.metric("unerase_kills_survived_total", room=killed) > survived
    assert _observations(backend, audit.id) == observations
    samples = [Observation.FromString(row) for row in observations]
    places = {(o.evaluation, o.role, o.case_index, o.arm, o.variant) for o in samples}
    assert len(places) == len(samples)
    assert hashlib.sha256(_content(client, audit.id)).hexdigest() == hashlib.sha256(content).hexdigest()


def test_a_stream_into_a_killed_replica_is_unavailable(backend: Running, channel: grpc.Channel) -> None:
    short, long = (
        Trajectory(conditioning=Conditioning(text="a circle"), guidance_scale=3, steps=steps, latent_seed=steps)
        for steps in (3, 500)
    )
    stub = GenerationServiceStub(channel)
    request = GenerateRequest(model="testbed/reference", trajectories=[short, long], pictures=True)
    call = stub.Generate(request, timeout=60)
    assert next(call).index == 0
    backend.kill("generation")
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    error = error_of(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ROOM_UNAVAILABLE")
    assert error.metadata == {"room": "generation"}
    assert error.retry_after is not None
    # And is back soon, in less time than until the coordinator asks again how the rooms are.
    request = GenerateRequest(model="testbed/reference", trajectories=[short], pictures=True)
    assert len(list(stub.Generate(request, timeout=60))) == 1


def test_a_room_without_a_replica_does_not_serve(backend: Running, channel: grpc.Channel) -> None:
    service = "unerase.internal.v1alpha1.ProbingService"
    await_health(channel, service, serving=True)
    with _kept_down(backend, "probing"):
        await_health(channel, service, serving=False)
    await_health(channel, service, serving=True)
