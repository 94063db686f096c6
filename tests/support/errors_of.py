"""What a call's error says beside its code."""

from typing import Any

from google.rpc import error_details_pb2, status_pb2


def details_of(error: Any) -> tuple[str, dict[str, str]]:
    """Return an error's reason, and its bad fields with what is wrong with each."""
    reason, fields = "", {}
    trailing = dict(error.trailing_metadata() or ())
    for detail in status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b"")).details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        if detail.Unpack(bad):
            fields = {each.field: each.description for each in bad.field_violations}
    return reason, fields
