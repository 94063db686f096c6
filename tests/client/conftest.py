"""The scripted server, and clients of both kinds for it."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
from typer.main import get_command

from support.scripted_server import QUICK, Blocking, Script, serve
from unerase import Client


@pytest.fixture(scope="session", autouse=True)
def _one_tree_of_commands() -> Iterator[None]:
    """Build the tree of commands once: for each command that is run in this process it takes longer than most do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("typer.testing._get_command", cache(get_command))
        yield


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
