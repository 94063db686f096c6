"""Checks which controls a request asks for: their kind, and its placebos."""

from collections.abc import Iterator

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import CONTROL_KIND_MODEL, CONTROL_KIND_PLACEBO, CONTROL_KIND_UNSPECIFIED, ControlKind
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.model_checks import Problem
from unerase_backend.runtime.bounds import most_items

MAX_PLACEBOS = most_items(AuditSpec, "placebos")
MISSING = "CONTROL_MISSING"
"""The reason of a request for a kind of control that the catalogue cannot give."""


def fold_placebo(spec: AuditSpec) -> Iterator[Problem]:
    """Move the deprecated `placebo` of a request into its `placebos`; yield what contradicts it there."""
    if spec.placebo and not spec.placebos:
        spec.placebos.append(spec.placebo)
    elif spec.placebo and list(spec.placebos) != [spec.placebo]:
        yield Problem("spec.placebo", "must be empty where spec.placebos names others")
    spec.ClearField("placebo")


def contradictions(spec: AuditSpec, placebos: str) -> Iterator[Problem]:
    """Yield what a request names that its kind of control leaves no use for.

    Its `placebo` is folded, and `placebos` is the field in which the placebos were given.
    """
    kind = spec.control_kind
    if kind not in ControlKind.values():
        yield Problem("spec.control_kind", f"there is no kind of control {kind}")
    elif kind == CONTROL_KIND_UNSPECIFIED:
        if spec.control and spec.placebos:
            description = "is for audits without a control model; this one names spec.control"
            yield Problem(placebos, description)
    else:
        asked = f"spec.control_kind asks for {ControlKind.Name(kind).removeprefix('CONTROL_KIND_')}"
        if spec.control and kind != CONTROL_KIND_MODEL:
            yield Problem("spec.control", f"must be empty: {asked}")
        if spec.placebos and kind != CONTROL_KIND_PLACEBO:
            yield Problem(placebos, f"must be empty: {asked}")


def takes_own_control(spec: AuditSpec) -> bool:
    """Whether a request that names no control model gets the concept's own; a named placebo replaces that."""
    return spec.control_kind == CONTROL_KIND_MODEL or not (spec.control_kind or spec.placebos)


def default_placebos(spec: AuditSpec, catalogue: Catalogue) -> list[str]:
    """Return the placebos of an audit that names none: all of the catalogue that fit, in its order."""
    found: list[str] = []
    for name, entry in catalogue.concepts.items():
        if entry.placebo and not placebo_problem(name, found, spec, catalogue):
            found.append(name)
    return found[:MAX_PLACEBOS]


def placebo_problem(placebo: str, before: list[str], spec: AuditSpec, catalogue: Catalogue) -> str:
    """Return why a concept of the catalogue cannot be a placebo beside those `before` it; empty if it can.

    `spec` may name a concept or a model that the catalogue does not have.
    """
    entry, concept = catalogue.concepts[placebo], catalogue.concepts.get(spec.concept)
    if not entry.placebo:
        return "is not a placebo: the catalogue does not say that no model knows it"
    if placebo in before:
        return "is named twice"
    if concept is not None and catalogue.same(entry, concept):
        another = "" if placebo == spec.concept else " under another name: they share a word or a label"
        return f"is the concept itself{another}"
    if concept is not None and entry.kind != concept.kind:
        return f"is of the kind {entry.kind}, but the concept is not: they need different procedures"
    if alike := next((name for name in before if catalogue.same(entry, catalogue.concepts[name])), ""):
        return f"is the placebo {alike!r} under another name: they share a word or a label"
    return _lack(placebo, spec, catalogue)


def _lack(placebo: str, spec: AuditSpec, catalogue: Catalogue) -> str:
    """Return what a placebo lacks for the audit's procedures and judges; empty if nothing."""
    if not catalogue.has_pictures(placebo):
        return "has no pictures to hand to the model"
    side, reference = catalogue.picture_side(placebo), catalogue.models.get(spec.reference)
    if reference is not None and side != reference.resolution:
        return f"its pictures have {side} pixels a side, the reference's {reference.resolution}"
    labels = catalogue.concepts[placebo].labels
    missing = [judge for judge in (spec.selector, spec.judge, spec.second_judge) if judge not in labels]
    return f"has no labels for the judge {missing[0]!r}" if missing else ""
