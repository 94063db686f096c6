"""Which evaluations of an audit do not apply to its models."""

from unerase.v1.audits_pb2 import AuditSpec


def inapplicable(spec: AuditSpec) -> dict[str, str]:
    """Return why evaluations of an accepted audit do not apply to its models, by their names."""
    battery = spec.battery.evaluations
    return {each.name: each.not_applicable.reason for each in battery if each.HasField("not_applicable")}
