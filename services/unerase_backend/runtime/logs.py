"""Logs: one line for each event, as text or JSON, with the ids of its audit, request and trace.

Each room's process writes to a file named after the room in a given folder, or to stderr, which Ray keeps with the logs
of its session. A file that is moved away is opened again, so that logrotate works.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from unerase_backend.runtime import tracing
from unerase_backend.runtime.call_context import AUDIT, REQUEST

ROOT = "unerase_backend"
# Libraries whose warnings concern our work: workflows, tasks with unhandled errors, connections.
_OTHERS = ("dbos", "asyncio", "grpc", "sqlalchemy")


def configure(room: str, form: str, folder: str) -> None:
    """Write this process's log in `form`, "text" or "json", to `room`.log in a folder, or to stderr without one."""
    handler: logging.Handler
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(Path(folder) / f"{room}.log", encoding="utf-8")
    else:
        # The process's own stderr: Serve redirects sys.stderr to its log.
        handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonLines(room) if form == "json" else TextLines(room))
    handler.addFilter(_belonging)
    for name in (ROOT, *_OTHERS):
        logger = logging.getLogger(name)
        for before in list(logger.handlers):
            logger.removeHandler(before)
            before.close()
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if name == ROOT else logging.WARNING)
        logger.propagate = False


class _Lines(logging.Formatter):
    """What both forms have in common."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return an exception with its causes.

        Logging itself uses `print`, which Ray Serve replaces by a function that writes the repr of its argument.
        """
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


class JsonLines(_Lines):
    """One JSON object for each line; audit, request, trace and exception are left out if the event has none."""

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": _time(record),
            "level": record.levelname,
            "room": self._room,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **{name: value for name in _FIELDS if (value := getattr(record, name, ""))},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(_Lines):
    """The same as text for people, with an exception on its own lines."""

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        belongs = "".join(f" {name}={value}" for name in _FIELDS if (value := getattr(record, name, "")))
        line = f"{_time(record)} {record.levelname} {self._room} {record.name.removeprefix(f'{ROOT}.')}:"
        line += f" {record.getMessage()}{belongs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_FIELDS = ("audit", "request", "trace")


def _belonging(record: logging.LogRecord) -> bool:
    """Add the ids to the record. This is a filter, because filters run in the task that logs."""
    record.audit, record.request, record.trace = AUDIT.get(), REQUEST.get(), tracing.trace_id()
    return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
