"""What several rooms' tests share."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support.backend import LocalBackend, local_backend
from support.postgres import Postgres, running_postgres
from unerase_backend.runtime import tracing
from unerase_backend.runtime.access import CALLER
from unerase_backend.runtime.call_context import AUDIT, REQUEST

# How long an example takes is the machine's affair; `make bench` measures.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Let the programs that tests start be interrupted: a shell ignores SIGINT for what it runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--catalogue",
        action="append",
        default=[],
        help="a catalogue file beside the embedded testbed's, as with the judges of a package under test",
    )


# First, since xdist reads the groups in the same way.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process have all tests of the service, which share a backend, and first; and then go by file.

    In `make faults` the tests that need the shared backend come last, so that it does not run beside others.
    """
    tests = Path(__file__).parent
    for item in items:
        room, *_ = item.path.relative_to(tests).parts
        item.add_marker(pytest.mark.xdist_group("service" if room == "service" else str(item.path)))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("backends") and "backend" in getattr(item, "fixturenames", ()):
        return 2
    return item.path.parent.name != "service"


@pytest.fixture(autouse=True)
def _own_context() -> Iterator[None]:
    """Give each test the caller, audit, request and span of nobody: those that a test sets are not the next one's."""
    variables: tuple[ContextVar[Any], ...] = (CALLER, AUDIT, REQUEST, tracing._CURRENT)
    before = [(variable, variable.set(variable.get())) for variable in variables]
    yield
    for variable, token in before:
        variable.reset(token)


@pytest.fixture(scope="session")
def catalogues(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The catalogue files that the command line names."""
    return tuple(request.config.getoption("--catalogue"))


@pytest.fixture(scope="session")
async def local(tmp_path_factory: pytest.TempPathFactory, catalogues: tuple[str, ...]) -> AsyncIterator[LocalBackend]:
    """The backend in this process, over the embedded testbed and one store."""
    async with local_backend(tmp_path_factory.mktemp("local"), catalogues=catalogues) as backend:
        yield backend


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server."""
    with running_postgres() as server:
        yield server
