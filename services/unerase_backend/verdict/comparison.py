"""Checks that the models and judges of an audit differ, as its comparison requires.

The coordinator refuses requests that fail this check. A report or an export may be older than the check, or come from
elsewhere, so the report checks again: the manifest has the names and digests.
"""

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model
from unerase_backend.verdict import roles


def flaws(spec: AuditSpec, manifest: Manifest) -> list[str]:
    """Return what makes the comparison invalid, one sentence for each flaw; empty if all differ as they must."""
    subject, reference, control = roles.recorded_models(spec, manifest)
    pairs = [("control", control, "subject", subject), ("control", control, "reference", reference)]
    guarded = subject is not None and roles.differs_by_guards(subject, spec.access)
    if not spec.assume_reference and not guarded:
        pairs.insert(1, ("reference", reference, "subject", subject))
    found = [_alike(role, one, other_role, other) for role, one, other_role, other in pairs if one and other]
    judges = [
        f"The {later} is the same model as the {earlier}, so it confirms nothing.".replace("_", " ")
        for later, earlier in roles.judges_alike(spec, manifest)
    ]
    return [sentence for sentence in found if sentence] + judges


def _alike(role: str, one: Model, other_role: str, other: Model) -> str:
    if one.name == other.name:
        return f"The {role} is the {other_role} itself ({one.name}), so comparing them shows nothing."
    alike = f"as the {other_role} {other.name}, so"
    if roles.same_weights(one, other):
        return f"The {role} {one.name} has the same weights {alike} comparing them shows nothing."
    if role == "control" and roles.same_denoiser(one, other):
        return f"The {role} {one.name} has the same UNet {alike} it may hold the same knowledge."
    return ""
