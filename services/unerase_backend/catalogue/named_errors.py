"""Errors about the files of a model or judge name it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unerase_backend.runtime.errors import UnsafeModelError


@contextmanager
def naming(kind: str, name: str) -> Iterator[None]:
    """Let an error say which model or judge it is about; a model's base has said so already."""
    try:
        yield
    except UnsafeModelError as error:
        if error.metadata:
            raise
        raise UnsafeModelError(f"{name}: {error.message}", reason=error.reason, metadata={kind: name}) from error
    except OSError as error:
        message = f"{name}: {Path(error.filename or '').name} cannot be read: {error.strerror}"
        raise UnsafeModelError(message, reason="FILE_UNREADABLE", metadata={kind: name}) from error
