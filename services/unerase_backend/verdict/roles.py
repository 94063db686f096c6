"""Which models may take which roles in an audit: no model is compared with itself.

The rules need no weights, only what the catalogue says about the models. They are checked when an audit is requested,
and again when a verdict is computed from an export.
"""

import itertools
from collections.abc import Iterable, Mapping

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, ModelAccess
from unerase_backend.catalogue.part_names import DENOISERS, TEXT_ENCODERS
from unerase_backend.runtime.spelling import share_a_word


def same_denoiser(one: Model, other: Model) -> bool:
    """Whether two models have the same denoising network, by the digests of its files."""
    return any(_same(one, other, part) for part in DENOISERS)


def same_weights(one: Model, other: Model) -> bool:
    """Whether two models have the same denoising network and the same text encoders, whatever their names."""
    if one.digest and one.digest == other.digest:
        return True
    encoders = [part for part in TEXT_ENCODERS if _part(one, part) or _part(other, part)]
    return same_denoiser(one, other) and bool(encoders) and all(_same(one, other, part) for part in encoders)


def known_never_learned(never_learned: Iterable[str], concept: str, words: Iterable[str]) -> bool:
    """Whether a model's `never_learned` names the concept or one of its words."""
    return share_a_word((concept, *words), never_learned)


def control_problem(control: Model, others: Mapping[str, Model]) -> str:
    """Return why a model cannot be the control beside `others`, the models by role; empty if it can."""
    for role, other in others.items():
        if control.name == other.name:
            return f"is the {role} itself"
        if same_weights(control, other):
            return f"is the {role} {other.name!r} under another name: it has the same weights"
        if same_denoiser(control, other):
            part = "transformer" if _part(control, "transformer") else "UNet"
            return f"has the {part} of the {role} {other.name!r}, the part that decides"
    return ""


def reference_problem(
    reference: Model, subject: Model, access: ModelAccess.ValueType = ModelAccess.MODEL_ACCESS_UNSPECIFIED
) -> str:
    """Return why, by its weights, a model cannot be the original of the subject; empty if it can.

    Guards may be all that a subject adds to its original; then only its weights, audited alone, are the original's own.
    """
    if reference.name == subject.name:
        return "is the subject itself"
    if same_weights(reference, subject) and not differs_by_guards(subject, access):
        return f"is the subject {subject.name!r} under another name: it has the same weights"
    return ""


def differs_by_guards(subject: Model, access: ModelAccess.ValueType) -> bool:
    """Whether an audit may compare a subject with a reference of the same weights: its guards take part."""
    return bool(subject.guards) and access != ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS


def recorded_problem(spec: AuditSpec, concept: Concept, manifest: Manifest) -> str:
    """Return what is wrong with the roles of a recorded audit, so that it has no verdict; empty if nothing is.

    The audit is not rejected for what its manifest leaves out. It is rejected if one name has two roles.
    """
    subject, reference, control = recorded_models(spec, manifest)
    problem = reference_problem(reference, subject, spec.access) if subject and reference else ""
    if problem and not spec.assume_reference:
        return f"spec.reference: {problem}"
    others = {"subject": subject, "reference": reference}
    if control:
        if problem := control_problem(control, {role: model for role, model in others.items() if model}):
            return f"spec.control: {problem}"
        known = known_never_learned(control.never_learned, spec.concept, concept.names)
        told = any(model.name == control.name for model in manifest.models)
        if told and not known and not spec.assume_control:
            return f"spec.control: the manifest does not say that it never learned {spec.concept!r}"
    if judges_alike(spec, manifest):
        return "spec.second_judge: two of the three judges are one, by their digests or names"
    return ""


def recorded_models(spec: AuditSpec, manifest: Manifest) -> tuple[Model | None, Model | None, Model | None]:
    """Return the subject, reference and control of a recorded audit; None for a role that it does not have.

    A model that the manifest leaves out has only its name.
    """
    models = {model.name: model for model in manifest.models}
    subject, reference, control = (
        models.get(name, Model(name=name)) if name else None for name in (spec.subject, spec.reference, spec.control)
    )
    return subject, reference, control


def judges_alike(spec: AuditSpec, manifest: Manifest) -> list[tuple[str, str]]:
    """Return pairs of judge fields, later and earlier, that are the same model by digest, or by name without one."""
    names = {field: getattr(spec, field) for field in ("selector", "judge", "second_judge")}
    # The same weights with other options are still the same model.
    weights = {judge.name: ",".join(sorted(judge.weights.values())) for judge in manifest.judges}
    judges = {
        field: weights.get(name) or manifest.judge_digests.get(name, "") or name
        for field, name in names.items()
        if name
    }
    return [
        (later, earlier) for earlier, later in itertools.combinations(judges, 2) if judges[earlier] == judges[later]
    ]


def _same(one: Model, other: Model, part: str) -> bool:
    files = _part(one, part)
    # A model without a list of files cannot be compared, and counts as different.
    return bool(files) and files == _part(other, part)


def _part(model: Model, part: str) -> list[str]:
    """Return the digests of a part's files, in the order in which each is loaded over the one before."""
    found: list[str] = []
    for file in model.files:
        named = f"{file.digest} {file.token}" if file.token else file.digest
        scaled = f"{named} x {file.lora_scale!r}" if file.lora_scale else named
        # The same file twice in a row replaces nothing; the same LoRA twice adds twice.
        if file.component == part and (file.lora_scale or scaled not in found[-1:]):
            found.append(scaled)
    return found
