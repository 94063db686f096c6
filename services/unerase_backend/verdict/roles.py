"""Which models may stand for what in an audit: nothing is held against itself.

The rules need no weights, only what the catalogue tells of models, so that they hold where an audit is asked for and
where one is concluded again from its export.
"""

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
    return all(_same(one, other, part) for part in _WEIGHTS)


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

    What the manifest does not tell of is not held against the audit.
    """
    models = {model.name: model for model in manifest.models}
    subject, reference, control = (models.get(name) for name in (spec.subject, spec.reference, spec.control))
    if subject and reference and not spec.assume_reference and (problem := reference_problem(reference, subject)):
        return f"spec.reference: {problem}"
    others = {"subject": subject, "reference": reference}
    if control:
        if problem := control_problem(control, {role: model for role, model in others.items() if model}):
            return f"spec.control: {problem}"
        known = known_never_learned(control.never_learned, spec.concept, concept.names)
        if not known and not spec.assume_control:
            return f"spec.control: the manifest does not say that it never learned {spec.concept!r}"
    judges = [name for name in (spec.selector, spec.judge, spec.second_judge) if name in manifest.judge_digests]
    if len({manifest.judge_digests[name] for name in judges}) < len(judges):
        return "spec.second_judge: two of the three judges are one, by their digests"
    return ""


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
