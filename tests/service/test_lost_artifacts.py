"""Artefacts are cut short, damaged or removed behind the backend's back: made again, or the loss is said."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from support.serving import Running
from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED

from .conftest import small_spec

SPEC = small_spec(seed_base=77, cases=8)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS: list[Callable[[Path], None]] = [_cut, _flip, Path.unlink]


def _path(backend: Running, digest: str) -> Path:
    return backend.data / "artifacts" / "artifacts" / digest[:2] / digest


def _run(client: Client) -> tuple[str, bytes]:
    audit = client.create_audit(SPEC)
    assert list(client.watch(audit.id, timeout=120))[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
    return audit.id, _content(client, audit.id)


def _content(client: Client, audit_id: str) -> bytes:
    return client.report_message(audit_id).content.SerializeToString(deterministic=True)


def _pictures(client: Client, audit_id: str) -> list[str]:
    shown = client.report_message(audit_id).content.pictures
    return sorted({picture.digest for picture in shown if picture.digest})


@pytest.fixture(scope="module")
def whole(client: Client) -> tuple[str, bytes]:
    return _run(client)


@pytest.mark.parametrize("harm", HARMS, ids=["cut", "flipped", "missing"])
def test_the_next_audit_makes_lost_pictures_again(
    backend: Running, client: Client, whole: tuple[str, bytes], harm: Callable[[Path], None]
) -> None:
    first, content = whole
    pictures = _pictures(client, first)
    before = {digest: client.artifact(first, digest) for digest in pictures}
    for digest in pictures[::2]:
        harm(_path(backend, digest))
    for digest in pictures[::2]:
        with pytest.raises(UneraseError) as caught:
            client.artifact(first, digest)
        assert caught.value.code == grpc.StatusCode.DATA_LOSS
    _, same = _run(client)
    assert same == content
    assert {digest: client.artifact(first, digest) for digest in pictures} == before


def test_pictures_that_are_lost_while_the_audit_runs_are_made_again(
    backend: Running, client: Client, whole: tuple[str, bytes]
) -> None:
    first, content = whole
    pictures = _pictures(client, first)
    backend.forget()
    audit = client.create_audit(SPEC)
    for event in client.watch(audit.id, timeout=120):
        if event.WhichOneof("event") == "unit_done":
            for digest in pictures:
                _path(backend, digest).unlink(missing_ok=True)
    assert client.get_audit(audit.id).state == AUDIT_STATE_SUCCEEDED
    assert _content(client, audit.id) == content
    assert all(client.artifact(audit.id, digest) for digest in pictures)


@pytest.mark.parametrize("harm", HARMS, ids=["cut", "flipped", "missing"])
def test_a_lost_report_is_rendered_again(
    backend: Running, client: Client, whole: tuple[str, bytes], harm: Callable[[Path], None]
) -> None:
    audit_id, _ = whole
    forms = (client.report_message(audit_id), client.report(audit_id), client.report_parquet(audit_id))
    for digest in _report_digests(backend, audit_id)[1:]:
        harm(_path(backend, digest))
    assert (client.report_message(audit_id), client.report(audit_id), client.report_parquet(audit_id)) == forms


def test_a_report_that_cannot_be_rendered_again_is_a_loss(backend: Running, client: Client) -> None:
    audit_id, _ = _run(client)
    for digest in _report_digests(backend, audit_id)[:2]:
        _path(backend, digest).unlink()
    with pytest.raises(UneraseError) as caught:
        client.report_json(audit_id)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.DATA_LOSS, "DATA_LOSS")


def _report_digests(backend: Running, audit_id: str) -> list[str]:
    """Return the digests of content, JSON, HTML and Parquet."""
    columns = "content_digest, json_digest, html_digest, parquet_digest"
    with sqlite3.connect(backend.data / "coordinator" / "audits.sqlite") as connection:
        return list(connection.execute(f"select {columns} from unerase_audits where id = ?", (audit_id,)).fetchone())
