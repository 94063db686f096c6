"""Checks that the models and judges of an audit differ, as its comparison requires.

The coordinator refuses requests that fail this check. A report or an export may be older than the check, or come from
elsewhere, so the report checks again: the manifest has the names and digests.
"""

from collections.abc import Iterator

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model, Schedule
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


def schedule_notes(spec: AuditSpec, manifest: Manifest) -> list[str]:
    """Return how the models of an audit are stepped, one sentence for each that differs from the reference.

    A model whose schedule the manifest leaves out is passed over.
    """
    _, reference, _ = models = roles.recorded_models(spec, manifest)
    if reference is None or not reference.HasField("schedule"):
        return []
    subject, _, control = models
    others = [("subject", subject), ("control", control)]
    return [
        sentence
        for role, model in others
        if model is not None and model.name != reference.name and model.HasField("schedule")
        for sentence in _schedule_sentences(role, model, reference, own=spec.own_schedules)
    ]


def _schedule_sentences(role: str, model: Model, reference: Model, *, own: bool) -> Iterator[str]:
    one, other = model.schedule, reference.schedule
    if _stepping(one) != _stepping(other):
        named = f"its folder names {_stepping(one)}, the reference's {_stepping(other)}"
        how = "by its own schedule, not the reference's" if own else "by the reference's schedule, not its own"
        yield f"The {role} {model.name} was stepped {how}: {named}."
    if own and one.betas != other.betas:
        yield f"The {role} {model.name} has betas of its own: {one.betas}; the reference has {other.betas}."
    if one.prediction_type != other.prediction_type:
        errors = "are not comparable" if own else "are given as the reference's"
        yield (
            f"The {role} {model.name} predicts {one.prediction_type}, the reference {other.prediction_type}: each was "
            f"sampled by its own, and denoising errors {errors}."
        )


def _stepping(schedule: Schedule) -> str:
    if schedule.flow:
        return schedule.flow
    last = "alpha 1" if schedule.set_alpha_to_one else "the first timestep's alpha"
    return f"{schedule.timestep_spacing} timesteps that end at {last}"


def _alike(role: str, one: Model, other_role: str, other: Model) -> str:
    if one.name == other.name:
        return f"The {role} is the {other_role} itself ({one.name}), so comparing them shows nothing."
    alike = f"as the {other_role} {other.name}, so"
    if roles.same_weights(one, other):
        return f"The {role} {one.name} has the same weights {alike} comparing them shows nothing."
    if role == "control" and roles.same_denoiser(one, other):
        return f"The {role} {one.name} has the same UNet {alike} it may hold the same knowledge."
    return ""
