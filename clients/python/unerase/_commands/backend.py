"""What the backend offers the command, where it is installed; the client imports nothing of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import typer

from unerase._commands.failing import ExitCode, fail, os_problem


def of_the_backend(name: str) -> Any:
    """Return what the backend offers under `name`; ends the command where it is not installed."""
    found = list(entry_points(group="unerase.server", name=name))
    missing = ""
    try:
        loaded: Any = found[0].load() if found else None
    except ModuleNotFoundError as error:
        # The package is there without the extra: this names what the extra would have brought.
        loaded, missing = None, f" ({error.name} is missing)"
    if loaded is None:
        fail(
            f"the backend is not installed{missing}; install it with: pip install 'unerase[server]'", ExitCode.BAD_INPUT
        )
    return loaded


@contextmanager
def of_the_operator() -> Iterator[None]:
    """Turn what is wrong with an operator's files, settings or machine into lines and an exit code."""
    try:
        yield
    except typer.Exit:
        # A RuntimeError by birth.
        raise
    except OSError as error:
        fail(os_problem(error), ExitCode.BAD_INPUT)
    except (ValueError, RuntimeError) as error:
        fail(str(error), ExitCode.BAD_INPUT)
