"""What a backend says of itself, to whom."""

import asyncio
from collections.abc import Iterable

import pytest

from unerase._contract_number import CONTRACT
from unerase.v1.server_pb2 import GetServerInfoRequest, ServerInfo
from unerase.v1.server_pb2_grpc import ServerServiceStub
from unerase_backend.coordinator.api import server
from unerase_backend.coordinator.api.server_service import LIMITS, Allowed
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.runtime.access import CALLER, SCOPES, Caller

from .guarded import Guarded, server_info

ALLOWED = Allowed(("webhooks", "model-registration"), ("/models",), ("CompVis",), ("hooks.example",))


def told(tenant: str, scopes: Iterable[str], allowed: Allowed = ALLOWED) -> ServerInfo:
    async def ask() -> ServerInfo:
        CALLER.set(Caller(tenant, frozenset(scopes)))
        return await server_info(allowed).GetServerInfo(GetServerInfoRequest(), None)  # type: ignore[arg-type]

    return asyncio.run(ask())


@pytest.mark.parametrize("scope", SCOPES)
async def test_every_valid_token_may_ask(guarded: Guarded, scope: str) -> None:
    async with guarded.channel() as channel:
        call = ServerServiceStub(channel).GetServerInfo(  # type: ignore[no-untyped-call]
            GetServerInfoRequest(), metadata=(("authorization", f"Bearer {guarded.token[scope]}"),)
        )
        info = await call
    assert info.contract == CONTRACT
    assert list(info.evaluations) == ["inpainting", "likelihood"]
    assert {"filters", "labels"} <= set(info.features)
    assert info.time.seconds > 1_700_000_000


def test_limits_are_those_that_are_kept() -> None:
    limits = told("acme", ["audit:read"]).limits
    assert limits["message_bytes"] == dict(server._OPTIONS)["grpc.max_receive_message_length"]
    assert limits["cases"] == MAX_CASES
    assert (limits["audit_pictures"], limits["tenant_audits"]) == (7, len("acme"))
    # What has no limit is not there.
    assert "audit_rows" not in limits
    assert LIMITS.items() <= limits.items()
    assert all(limits.values())


def test_only_who_may_use_it_is_told_where_models_and_webhooks_may_be() -> None:
    reader, writer, owner = (told("acme", [scope]) for scope in ("audit:read", "audit:write", "model:write"))
    for told_all in (told("", ["admin"]),):
        assert list(told_all.model_roots) == ["/models"]
        assert list(told_all.webhook_hosts) == ["hooks.example"]
    assert not reader.model_roots
    assert not reader.webhook_hosts
    assert (list(writer.webhook_hosts), list(writer.model_roots)) == (["hooks.example"], [])
    assert (list(owner.model_roots), list(owner.model_organisations)) == (["/models"], ["CompVis"])
    assert not owner.webhook_hosts
    assert list(reader.features) == ["campaigns", "filters", "labels", "model-registration", "webhooks"]
