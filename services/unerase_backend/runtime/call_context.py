"""What a call from room to room carries besides its message: the ids of the audit and the request, and the trace."""

import inspect
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from unerase_backend.runtime import tracing
from unerase_backend.runtime.errors import UneraseError

_logger = logging.getLogger(__name__)

AUDIT: ContextVar[str] = ContextVar("unerase_audit", default="")
"""The id of the audit that this task works for; empty if there is none."""
REQUEST: ContextVar[str] = ContextVar("unerase_request", default="")
"""The `x-request-id` of the RPC that this task answers; empty in an audit's workflow."""

Method = TypeVar("Method", bound=Callable[..., Any])


def call_context() -> dict[str, str]:
    """Return the context that a call from this task carries, without empty values."""
    all_of_it = {"audit": AUDIT.get(), "request": REQUEST.get(), "traceparent": tracing.traceparent()}
    return {name: value for name, value in all_of_it.items() if value}


def receives(method: Method) -> Method:
    """Let a room's RPC take the context of its call, and make each call a span of the trace and a line of the log."""
    if inspect.isasyncgenfunction(method):

        @wraps(method)
        async def streaming(
            self: Any, *arguments: Any, context: Mapping[str, str] | None = None
        ) -> AsyncGenerator[Any]:
            with _answering(f"{type(self).__name__.lower()}.{method.__name__}", context or {}):
                async with aclosing(method(self, *arguments)) as responses:
                    async for response in responses:
                        yield response

        return streaming  # type: ignore[return-value]

    @wraps(method)
    async def unary(self: Any, *arguments: Any, context: Mapping[str, str] | None = None) -> Any:
        with _answering(f"{type(self).__name__.lower()}.{method.__name__}", context or {}):
            answer: Awaitable[Any] = method(self, *arguments)
            return await answer

    return unary  # type: ignore[return-value]


@contextmanager
def _answering(name: str, context: Mapping[str, str]) -> Iterator[None]:
    # Each call of a room is a task of its own, so nothing has to be reset.
    AUDIT.set(context.get("audit", ""))
    REQUEST.set(context.get("request", ""))
    tracing.adopt(context.get("traceparent", ""))
    begin, outcome = time.monotonic(), "was cancelled"
    try:
        with tracing.span(name):
            yield
        outcome = "ended"
    except UneraseError as error:
        outcome = f"ended with {error.reason}"
        raise
    except Exception:
        outcome = "failed"
        _logger.exception("%s failed with an unexpected error", name)
        raise
    finally:
        _logger.info("%s %s after %.3f s", name, outcome, time.monotonic() - begin)
