"""Why an application of Serve could not be deployed: the error of its own process, which Serve keeps."""

import re
from collections.abc import Iterable
from typing import Any

_FAILED, _RUNNING = "DEPLOY_FAILED", "RUNNING"
_MOST_LINES = 8
# The first line of a frame in a traceback, as Python writes it.
_FRAME = re.compile(r'  File "')
# Domain errors speak for themselves; others are named by their class.
_DOMAIN = re.compile(r"^unerase_backend\.[\w.]+: ")
# Pydantic puts the kind of exception before the words of a validator.
_PREFIX = re.compile(r"^( +)Value error, ", re.MULTILINE)
_CLASS = re.compile(r"^([\w.]+)(?=:|$)")
# Errors that another try with the same settings and files meets again. Whatever is not among them may pass: Serve makes
# three tries, which take a minute.
_DEFINITE = frozenset(
    {
        *(f"unerase_backend.runtime.errors.{each}Error" for each in ("InvalidRequest", "NotFound", "Precondition")),
        "unerase_backend.runtime.errors.UnsafeModelError",
        "pydantic_core._pydantic_core.ValidationError",
        *("AttributeError", "ImportError", "KeyError", "ModuleNotFoundError", "TypeError", "ValueError"),
        *("FileExistsError", "FileNotFoundError", "IsADirectoryError", "NotADirectoryError", "PermissionError"),
    }
)


def all_running(status: Any, count: int) -> bool:
    """Return whether all `count` applications run; `status` is what `serve.status()` returns."""
    return len(status.applications) == count and all(
        application.status == _RUNNING for application in status.applications.values()
    )


def has_failed(status: Any) -> bool:
    """Return whether Serve has given an application up."""
    return any(application.status == _FAILED for application in status.applications.values())


def deployment_errors(status: Any) -> list[str]:
    """Return a line or more for each error of an application that Serve has given up.

    Applications that failed for the same reason share a line.
    """
    found: list[tuple[str, str]] = []
    for name, application in status.applications.items():
        if application.status == _FAILED:
            messages = [each.message for each in application.deployments.values() if each.status == _FAILED]
            found += [(name, last_error(message)) for message in messages or [application.message]]
    return _lines(found)


def definite_errors(status: Any) -> list[str]:
    """Return the errors of deployments that start, as far as another try would meet them again; as `deployment_errors`.

    Serve itself tries again whatever the error is.
    """
    return _lines(
        [
            (name, last_error(deployment.message))
            for name, application in status.applications.items()
            if application.status != _RUNNING
            for deployment in application.deployments.values()
            if _is_definite(deployment.message)
        ]
    )


def _is_definite(message: str) -> bool:
    kind = _CLASS.match(_last_error(message))
    return kind is not None and kind[1] in _DEFINITE


def _lines(found: Iterable[tuple[str, str]]) -> list[str]:
    applications: dict[str, list[str]] = {}
    for name, error in found:
        applications.setdefault(error, []).append(name)
    return [f"{', '.join(names)} could not be started: {error}" for error, names in applications.items()]


def last_error(message: str) -> str:
    """Return the last error in a text of tracebacks, without its stack; a text without one is cut to its last lines."""
    return _PREFIX.sub(r"\1", _DOMAIN.sub("", _last_error(message)))


def _last_error(message: str) -> str:
    lines = message.rstrip().splitlines()
    frames = [index for index, line in enumerate(lines) if _FRAME.match(line)]
    if frames:
        # A frame's own lines are indented, and the error that follows it is not.
        after = lines[frames[-1] + 1 :]
        begins = next((index for index, line in enumerate(after) if line and not line.startswith(" ")), 0)
        lines = after[begins:]
    return "\n".join(lines[-_MOST_LINES:])
