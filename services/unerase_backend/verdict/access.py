"""The accesses that an audit asked for, and the observations that each verdict rests on.

A subject with guards is two models: the one that its users get, and its weights. An audit of both has two verdicts,
each by the same rules from its own observations of the subject, and from the same ones of reference and control. What
measures the weights alone counts in both. Each verdict corrects for its own tests: they answer different questions.
"""

from collections.abc import Iterable

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import ModelAccess, Observation

DEPLOYED = ModelAccess.MODEL_ACCESS_DEPLOYED
OPEN_WEIGHTS = ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS

_WORDS = {DEPLOYED: "as deployed, with its guards", OPEN_WEIGHTS: "by its weights, without its guards"}

_NOT_AUDITED = {
    DEPLOYED: "Its weights without the guards were not audited.",
    OPEN_WEIGHTS: "The model as deployed, with its guards, was not audited.",
}


def accesses_of(spec: AuditSpec) -> list[ModelAccess.ValueType]:
    """Return the accesses with a verdict of their own, the stricter first: whoever holds the weights can do more."""
    return [OPEN_WEIGHTS, DEPLOYED] if spec.access == ModelAccess.MODEL_ACCESS_BOTH else [spec.access]


def seen_under(observations: Iterable[Observation], access: ModelAccess.ValueType) -> list[Observation]:
    """Return what a verdict on one access rests on: its own observations, and those that no guard could affect."""
    shared = ModelAccess.MODEL_ACCESS_UNSPECIFIED
    return [observation for observation in observations if observation.access in (shared, access)]


def words(access: ModelAccess.ValueType) -> str:
    """Return an access in words; empty for a subject without guards."""
    return _WORDS.get(access, "")


def not_audited(spec: AuditSpec) -> str:
    """Return a sentence about the access that an audit left out; empty if it asked for both, or there are no guards."""
    return _NOT_AUDITED.get(spec.access, "")
