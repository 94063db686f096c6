"""Logs: one line an event, as text or as JSON, with the audit, the request and the trace that it belongs to.

Every room's process writes to the same kind of place: a file of its room's name in a folder, or stderr, which Ray
keeps among its session's logs. A file that somebody moves away is opened anew, so that logrotate can take it.
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
# What others say of our work: of workflows, of tasks whose error nobody asked for, of connections.
_OTHERS = ("dbos", "asyncio", "grpc", "sqlalchemy")


def configure(room: str, form: str, folder: str) -> None:
    """Let this process write its log in `form`, "text" or "json", to `room`.log in a folder; to stderr without one."""
    handler: logging.Handler
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(Path(folder) / f"{room}.log", encoding="utf-8")
    else:
        # The process's own: Serve redirects sys.stderr into its log.
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
    """What both forms share."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return an exception with its causes.

        Not by `print`, as logging itself does: Ray Serve puts another in its place, which writes the repr of what it
        is to print to a file.
        """
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


class JsonLines(_Lines):
    """One JSON object a line; audit, request, trace and exception are in it where the event has them."""

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
    """The same for a reader, with an exception on lines of its own."""

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
    """Note what the record belongs to; a filter, since it runs where the event happens."""
    record.audit, record.request, record.trace = AUDIT.get(), REQUEST.get(), tracing.trace_id()
    return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
