"""The fields of each list that may be filtered, and their values in the items that are in memory."""

from collections.abc import Mapping

from google.protobuf.descriptor import EnumDescriptor

from unerase.v1.audits_pb2 import Audit, AuditState
from unerase.v1.campaigns_pb2 import CampaignState, CellState
from unerase.v1.models_pb2 import Model
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.coordinator.filtering.fields import Field, Kind, Values


def _choices(enum: EnumDescriptor, prefix: str) -> Mapping[str, int]:
    """Return an enum's numbers by their names without the prefix, without 0, which nothing has."""
    return {value.name.removeprefix(prefix): value.number for value in enum.values if value.number}


_TEXT, _TIME, _LABELS = Field(Kind.TEXT), Field(Kind.TIME), Field(Kind.LABELS)
_CONCLUSION = Field(Kind.CHOICE, _choices(Conclusion.DESCRIPTOR, "CONCLUSION_"))

AUDIT_FIELDS: Mapping[str, Field] = {
    "state": Field(Kind.CHOICE, _choices(AuditState.DESCRIPTOR, "AUDIT_STATE_")),
    "subject": _TEXT,
    "concept": _TEXT,
    "conclusion": _CONCLUSION,
    "campaign": _TEXT,
    "create_time": _TIME,
    "end_time": _TIME,
    "labels": _LABELS,
}
MODEL_FIELDS: Mapping[str, Field] = {
    "name": _TEXT,
    "base": _TEXT,
    "method": _TEXT,
    "erased": Field(Kind.TEXTS),
    "registered": Field(Kind.FLAG),
    "labels": _LABELS,
}
CAMPAIGN_FIELDS: Mapping[str, Field] = {
    "state": Field(Kind.CHOICE, _choices(CampaignState.DESCRIPTOR, "CAMPAIGN_STATE_")),
    "create_time": _TIME,
    "end_time": _TIME,
    "labels": _LABELS,
}
CELL_FIELDS: Mapping[str, Field] = {
    "state": Field(Kind.CHOICE, _choices(CellState.DESCRIPTOR, "CELL_STATE_")),
    "subject": _TEXT,
    "concept": _TEXT,
    "conclusion": _CONCLUSION,
    "attempts": Field(Kind.NUMBER),
}


def audit_values(audit: Audit) -> Values:
    """Return the values of an audit's `AUDIT_FIELDS`."""
    return {
        "state": audit.state,
        "subject": audit.spec.subject,
        "concept": audit.spec.concept,
        "conclusion": audit.verdict.conclusion,
        "campaign": audit.campaign,
        "create_time": audit.create_time.ToNanoseconds(),
        "end_time": audit.end_time.ToNanoseconds(),
        "labels": audit.labels,
    }.__getitem__


def model_values(model: Model) -> Values:
    """Return the values of a model's `MODEL_FIELDS`; its entry is enough, its digests are not needed."""
    return {
        "name": model.name,
        "base": model.base,
        "method": model.method,
        "erased": model.erased,
        "registered": model.registered,
        "labels": model.labels,
    }.__getitem__
