"""A webhook's POST, at real servers: which address it goes to, whom it trusts, and what it does not do."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp
import pytest
import trustme
from aiohttp import web

from support.receiver import Receiver, receiving
from unerase_backend.coordinator.webhooks.addresses import RefusedAddressError
from unerase_backend.coordinator.webhooks.hosts import Hosts, Target
from unerase_backend.coordinator.webhooks.posting import post

NO_TLS = ssl.create_default_context()
BODY = b'{"type": "audit.ended"}'


class Resolver:
    """Gives one answer after the other, and notes what it was asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def inside(receiver: Receiver, path: str = "/hook?x=1", host: str = "localhost") -> Target:
    """The receiver as a target that the operator allows by name."""
    return Hosts([], [f"{host}:{receiver.port}"]).target(f"http://{host}:{receiver.port}{path}")


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Target]:
    """A server that speaks as it likes, as a target that the operator allows by name."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield Hosts([], [f"localhost:{port}"]).target(f"http://localhost:{port}/")
    server.close()


async def test_a_post_brings_its_body_and_headers() -> None:
    async with receiving() as receiver:
        status = await post(inside(receiver), BODY, {"webhook-id": "m"}, NO_TLS, resolver=Resolver(["127.0.0.1"]))
        assert status == 200
        assert (receiver.paths, receiver.bodies) == (["/hook?x=1"], [BODY])
        (headers,) = receiver.headers
        assert headers["webhook-id"] == "m"
        assert headers["content-type"] == "application/json"
        assert headers["user-agent"].startswith("unerase/")
        assert headers["host"] == f"localhost:{receiver.port}"


async def test_the_connection_goes_to_the_address_that_was_looked_at() -> None:
    """A name whose answer changes in between: the second answer is never asked for."""
    async with receiving() as public, receiving(host="127.0.0.2") as private:
        resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
        target = Hosts([], [f"rebinding.example:{public.port}"]).target(f"http://rebinding.example:{public.port}/")
        assert await post(target, BODY, {}, NO_TLS, resolver=resolver) == 200
        assert resolver.asked == [("rebinding.example", public.port)]
        assert (len(public.bodies), len(private.bodies)) == (1, 0)


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], ["::1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["93.184.216.34", "127.0.0.1"]]
)
async def test_a_name_that_leads_inside_gets_no_connection(answers: list[str]) -> None:
    async with receiving() as receiver:
        target = Target(f"http://hooks.example:{receiver.port}/", "hooks.example", receiver.port, internal=False)
        with pytest.raises(RefusedAddressError):
            await post(target, BODY, {}, NO_TLS, resolver=Resolver(answers))
        assert receiver.bodies == []


async def test_a_redirect_is_not_followed() -> None:
    async with receiving() as receiver, receiving() as other:
        receiver.answering = lambda request: web.Response(
            status=307, headers={"location": f"http://127.0.0.1:{other.port}/"}
        )
        assert await post(inside(receiver), BODY, {}, NO_TLS, resolver=Resolver(["127.0.0.1"])) == 307
        assert (len(receiver.bodies), other.bodies) == (1, [])


async def test_an_endless_answer_is_not_read() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async with listening(endless) as target:
        assert await post(target, BODY, {}, NO_TLS, resolver=Resolver(["127.0.0.1"])) == 200
    assert sent < 64 * 2**20


@pytest.mark.parametrize("stage", ["accepts and says nothing", "says half a line"])
async def test_a_host_that_says_nothing_is_left_in_time(stage: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if stage == "says half a line":
            writer.write(b"HTTP/1.1 2")
            await writer.drain()
        await asyncio.Event().wait()

    async with listening(answer) as target:
        with pytest.raises(TimeoutError):
            await post(target, BODY, {}, NO_TLS, resolver=Resolver(["127.0.0.1"]), seconds=0.2)


async def test_an_answer_of_endless_headers_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2**20)
        await writer.drain()

    async with listening(answer) as target:
        with pytest.raises(aiohttp.ClientError):
            await post(target, BODY, {}, NO_TLS, resolver=Resolver(["127.0.0.1"]))


async def test_nobody_there_is_an_error() -> None:
    async with receiving() as receiver:
        gone = inside(receiver)
    with pytest.raises(OSError, match="Cannot connect"):
        await post(gone, BODY, {}, NO_TLS, resolver=Resolver(["127.0.0.1"]))


async def test_proxies_and_cookies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as receiver, receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await post(inside(receiver), BODY, {}, NO_TLS, resolver=Resolver(["127.0.0.1"])) == 200
        assert proxy.bodies == []


def tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_the_name_is_checked_though_the_address_is_fixed() -> None:
    authority = trustme.CA()
    async with receiving(tls(authority, "hooks.example")) as receiver:
        names = Hosts([], [f"{name}:{receiver.port}" for name in ("hooks.example", "other.example")])
        resolver = Resolver(["127.0.0.1"])
        good = names.target(f"https://hooks.example:{receiver.port}/")
        assert await post(good, BODY, {}, trusting(authority), resolver=resolver) == 200
        other = names.target(f"https://other.example:{receiver.port}/")
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(other, BODY, {}, trusting(authority), resolver=resolver)
        # And who certifies it.
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await post(good, BODY, {}, trusting(trustme.CA()), resolver=resolver)
        assert len(receiver.bodies) == 1
