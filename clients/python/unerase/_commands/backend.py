"""What the backend offers the command if it is installed; the client imports nothing from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import typer

from unerase._commands.failing import ExitCode, fail, os_problem


def of_the_backend(name: str) -> Any:
    """Return what the backend offers under `name`; end the command if the backend is not installed."""
    found = list(entry_points(group="unerase.server", name=name))
    missing = ""
    try:
        loaded: Any = found[0].load() if found else None
    except ModuleNotFoundError as error:
        # The package is installed without the extra `server`, which would have installed this module.
        loaded, missing = None, f" ({error.name} is missing)"
    if loaded is None:
        fail(
            f"the backend is not installed{missing}; install it with: pip install 'unerase[server]'", ExitCode.BAD_INPUT
        )
    return loaded


@contextmanager
def of_the_operator() -> Iterator[None]:
    """Turn problems with the operator's files, settings or machine into lines on stderr and an exit code."""
    try:
        yield
    except typer.Exit:
        # typer.Exit is a RuntimeError.
        raise
    except OSError as error:
        fail(os_problem(error), ExitCode.BAD_INPUT)
    except (ValueError, RuntimeError) as error:
        fail(str(error), ExitCode.BAD_INPUT)
