"""A small real server on loopback that receives webhooks, and answers as a test says."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Receiver:
    """What came, and what is answered; the answers are used up in order, the last one again and again."""

    port: int = 0
    answers: list[int] = field(default_factory=lambda: [200])
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    hangs: bool = False
    """Nothing is answered until the server ends."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    answering: Callable[[web.Request], "web.StreamResponse | None"] = lambda request: None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path_qs)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(await request.read())
        self.came.set()
        if self.hangs:
            await self.over.wait()
        other = self.answering(request)
        if other is not None:
            return other
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, text="an answer that nobody reads")


@asynccontextmanager
async def receiving(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    """Listen, encrypted if there is a context."""
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, host, 0, ssl_context=context)
    await site.start()
    assert site._server is not None
    receiver.port = site._server.sockets[0].getsockname()[1]
    yield receiver
    receiver.over.set()
    await runner.cleanup()
