"""The domain's errors, each with its gRPC code and a machine-readable reason.

A message says what is wrong, where, and what to do; it never contains a path, a host or a stack trace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc


@dataclass(frozen=True)
class FieldViolation:
    """One bad field of a request: its path as in `spec.battery.evaluations[1].name`, and what is wrong with it."""

    field: str
    description: str


class UneraseError(Exception):
    """The base of every error that a caller may see."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    def prefixed(self, where: str, **metadata: str) -> "UneraseError":
        """Return the same error with the place where it happened before its message, and more metadata."""
        return type(self)(
            f"{where}: {self.message}",
            reason=self.reason,
            metadata=self.metadata | metadata,
            violations=self.violations,
            retry_after_seconds=self.retry_after_seconds,
        )

    def extended(self, message: str, **metadata: str) -> "UneraseError":
        """Return the same error with another message, which says more, and with further metadata."""
        return _rebuild(
            type(self), message, self.reason, self.metadata | metadata, self.violations, self.retry_after_seconds
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every field when the error is pickled."""
        return _rebuild, (
            type(self),
            self.message,
            self.reason,
            self.metadata,
            self.violations,
            self.retry_after_seconds,
        )


def _rebuild(
    kind: type[UneraseError],
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    violations: Sequence[FieldViolation],
    retry_after_seconds: float | None,
) -> UneraseError:
    return kind(
        message, reason=reason, metadata=metadata, violations=violations, retry_after_seconds=retry_after_seconds
    )


MOST_NAMED = 20
"""The most violations of one kind that an answer lists."""

OUT_OF_MEMORY = "OUT_OF_MEMORY"
"""The reason of work that did not fit into a device's memory, whatever the error."""


class InvalidRequestError(UneraseError):
    """A request with bad fields."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    @classmethod
    def of(cls, *violations: FieldViolation) -> "InvalidRequestError":
        """Return the error of one or more violations; its message lists them."""
        return cls("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


class UnauthenticatedError(UneraseError):
    """A call without a valid token."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ForbiddenError(UneraseError):
    """A call for which the token lacks the scope."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "FORBIDDEN"


class NotFoundError(UneraseError):
    """Something named does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExistsError(UneraseError):
    """A request id was used again with a different request."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class PreconditionError(UneraseError):
    """The state of something does not allow the request."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class UnsafeModelError(UneraseError):
    """A model folder that must not or cannot be loaded."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UNSAFE_MODEL"


class ExhaustedError(UneraseError):
    """A limit is reached; trying again later may succeed."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class UnavailableError(UneraseError):
    """A part of the backend is temporarily unavailable; trying again is safe."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class UnknownMethodError(UneraseError):
    """A method that no service of the backend implements."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "METHOD_UNKNOWN"


class CancelledError(UneraseError):
    """The caller cancelled the call."""

    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class DeadlineError(UneraseError):
    """The caller's deadline has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class DataLossError(UneraseError):
    """Stored bytes are missing or do not match their digest."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "DATA_LOSS"
