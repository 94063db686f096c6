"""The scripted server, and clients of both kinds for it."""

from collections.abc import Callable, Iterator

import pytest

from support.scripted_server import QUICK, Blocking, Script, serve
from unerase import Client


@pytest.fixture
def script() -> Script:
    """What the server is to do."""
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    """A server on a free port of the loopback."""
    server, port = serve(script, "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Client | Blocking]:
    """Make a client of either kind for an address."""
    if request.param == "async":
        return Blocking
    return lambda address, settings=QUICK: Client(address, settings=settings)
