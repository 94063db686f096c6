"""The error that a failed call raises."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """One bad field of a request: its path, such as `spec.battery.evaluations[1].name`, and what is wrong with it."""

    field: str
    description: str


class UneraseError(Exception):
    """A call failed.

    Attributes:
        code: gRPC's status code.
        reason: machine-readable, such as "MODEL_NOT_FOUND"; the name of the code if the backend gave none.
        message: what went wrong, for people.
        violations: the bad fields of the request.
        retry_after: seconds after which trying again makes sense, if the backend said so.
        metadata: further details by name.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or code.name
        self.message = message
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def error_of(call: grpc.RpcError) -> UneraseError:
    """Return the error behind a failed call, sync or async, with the details of its google.rpc.Status."""
    code: grpc.StatusCode = call.code()
    message: str = call.details() or code.name
    reason, metadata, retry_after = "", dict[str, str](), None
    violations: list[FieldViolation] = []
    trailing = dict(cast("Iterable[tuple[str, str | bytes]]", call.trailing_metadata() or ()))
    for detail in status_pb2.Status.FromString(trailing.get(_DETAILS, b"")).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            violations += [FieldViolation(item.field, item.description) for item in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.seconds + delay.nanos / 1e9
    return UneraseError(code, message, reason=reason, violations=violations, retry_after=retry_after, metadata=metadata)
