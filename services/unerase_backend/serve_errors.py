"""Why an application of Serve could not be deployed: the error of its own process, which Serve keeps."""

import re
from typing import Any

_FAILED = "DEPLOY_FAILED"
_MOST_LINES = 8
# The first line of a frame in a traceback, as Python writes it.
_FRAME = re.compile(r'  File "')
# Domain errors speak for themselves; others are named by their class.
_DOMAIN = re.compile(r"^unerase_backend\.[\w.]+: ")


def deployment_errors(status: Any) -> list[str]:
    """Return a line or more for each error of an application; `status` is what `serve.status()` returns.

    Applications that failed for the same reason share a line.
    """
    applications: dict[str, list[str]] = {}
    for name, application in status.applications.items():
        if application.status == _FAILED:
            messages = [each.message for each in application.deployments.values() if each.status == _FAILED]
            for message in messages or [application.message]:
                applications.setdefault(last_error(message), []).append(name)
    return [f"{', '.join(names)} could not be started: {error}" for error, names in applications.items()]


def last_error(message: str) -> str:
    """Return the last error in a text of tracebacks, without its stack; a text without one is cut to its last lines."""
    lines = message.rstrip().splitlines()
    frames = [index for index, line in enumerate(lines) if _FRAME.match(line)]
    if frames:
        # A frame's own lines are indented, and the error that follows it is not.
        after = lines[frames[-1] + 1 :]
        begins = next((index for index, line in enumerate(after) if line and not line.startswith(" ")), 0)
        lines = after[begins:]
    return _DOMAIN.sub("", "\n".join(lines[-_MOST_LINES:]))
