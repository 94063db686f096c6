"""Which models may stand for what in an audit: nothing is held against itself.

The rules need no weights, only what the catalogue tells of models, so that they hold where an audit is asked for and
where one is concluded again from its export.
"""

import itertools
from collections.abc import Iterable, Mapping

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept

DENOISER = "unet"
"""The part that decides what a picture shows; a text encoder alone only decides how it is asked for."""
_WEIGHTS = (DENOISER, "text_encoder")


def same_denoiser(one: Model, other: Model) -> bool:
    """Whether two models have the same denoising network, by the digests of its files."""
    return _same(one, other, DENOISER)


def same_weights(one: Model, other: Model) -> bool:
    """Whether two models are one, whatever they are called: the same denoising network and the same text encoder."""
    whole = bool(one.digest) and one.digest == other.digest
    return whole or all(_same(one, other, part) for part in _WEIGHTS)


def known_never_learned(never_learned: Iterable[str], concept: str, words: Iterable[str]) -> bool:
    """Whether a model's `never_learned` names the concept or one of its words."""
    return not {concept, *words}.isdisjoint(never_learned)


def control_problem(control: Model, others: Mapping[str, Model]) -> str:
    """Return why a model cannot be the control beside `others`, by what they are to the audit; empty where it can."""
    for role, other in others.items():
        if control.name == other.name:
            return f"is the {role} itself"
        if same_weights(control, other):
            return f"is the {role} {other.name!r} under another name: it has the same weights"
        if same_denoiser(control, other):
            return f"has the UNet of the {role} {other.name!r}, the part that decides"
    return ""


def reference_problem(reference: Model, subject: Model) -> str:
    """Return why a model is no original of the subject by its weights; empty where it may be."""
    if reference.name == subject.name:
        return "is the subject itself"
    if same_weights(reference, subject):
        return f"is the subject {subject.name!r} under another name: it has the same weights"
    return ""


def recorded_problem(spec: AuditSpec, concept: Concept, manifest: Manifest) -> str:
    """Return what is wrong with the roles of an audit that was recorded, so that no verdict follows from it.

    What the manifest does not tell of is not held against the audit; one name in two roles is.
    """
    subject, reference, control = recorded_models(spec, manifest)
    if subject and reference and not spec.assume_reference and (problem := reference_problem(reference, subject)):
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
    """Return the subject, reference and control of an audit that was recorded; None for one that it does not have.

    Of one that the manifest does not tell of, only the name is known.
    """
    models = {model.name: model for model in manifest.models}
    subject, reference, control = (
        models.get(name, Model(name=name)) if name else None for name in (spec.subject, spec.reference, spec.control)
    )
    return subject, reference, control


def judges_alike(spec: AuditSpec, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the fields of judges that are one model, the later before the earlier: by digest, or else by name."""
    names = {field: getattr(spec, field) for field in ("selector", "judge", "second_judge")}
    judges = {field: manifest.judge_digests.get(name, "") or name for field, name in names.items() if name}
    return [
        (later, earlier) for earlier, later in itertools.combinations(judges, 2) if judges[earlier] == judges[later]
    ]


def _same(one: Model, other: Model, part: str) -> bool:
    files = _part(one, part)
    # Of a model whose files are not told nothing is known, and so nothing is held against it.
    return bool(files) and files == _part(other, part)


def _part(model: Model, part: str) -> list[str]:
    """Return the digests of a part's files in the order in which they are laid over each other."""
    found: list[str] = []
    for file in model.files:
        if file.component == part and file.digest not in found[-1:]:
            found.append(file.digest)
    return found
