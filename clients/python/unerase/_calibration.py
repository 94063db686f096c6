"""Choose the models of a calibration, and run their audits at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import grpc

from unerase._client import Client
from unerase._display import LiveProgress
from unerase._errors import FieldViolation, UneraseError
from unerase.v1.audits_pb2 import Audit, AuditSpec
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, ControlKind, ModelAccess

Answer = TypeVar("Answer")

JUDGES = 3
"""An audit's selector, judge and second judge."""

# An overloaded machine answers late.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def chosen(
    models: Iterable[Model], concepts: Iterable[Concept], concept: str, names: Sequence[str]
) -> tuple[str, str, list[str]]:
    """Return the concept, its reference and the models to audit: `names`, or the reference and models made from it.

    Models made from it count if they claim to have erased the concept or never to have learned it, unless they only add
    guards to another model: a calibration is of weights.

    Without a `concept`, it is the only one that some model never learned. The reference is the model that this one was
    made from, or that all of `names` were made from, if that is one model.

    Raises:
        UneraseError: INVALID_ARGUMENT, there is no such concept, or more than one.
    """
    concepts = list(concepts)
    controls = {each.name: each.control for each in concepts if each.control}
    if not concept:
        if len(controls) != 1:
            there = f"there are {', '.join(sorted(controls))}" if controls else "there is none"
            raise _bad("concept", f"must name a concept that some model never learned; {there}")
        (concept,) = controls
    if concept not in controls:
        raise _bad("concept", f"must be one that some model never learned, and {concept!r} is not")
    known = {each.name: each for each in models}
    bases = {each.name: each.base for each in known.values()}
    roots = {_root(name, bases) for name in names}
    reference = roots.pop() if len(roots) == 1 else _root(controls[concept], bases)
    words = {concept, *(word for each in concepts if each.name == concept for word in each.names)}
    digests = {each.digest for each in known.values()} - {""}
    concerned = {
        name
        for name, each in known.items()
        if words & {*each.erased, *each.never_learned} and not (each.guards and each.weights_digest in digests)
    }
    every = sorted(name for name in concerned | {reference} if _root(name, bases) == reference)
    return concept, reference, list(names) or every


def withheld(concepts: Iterable[Concept], template: AuditSpec) -> ControlKind.ValueType:
    """Return the kind of control of audits that are to do without a control model: the best of the others.

    It is a placebo if the catalogue has one that fits the concept, and otherwise the concept-free control. `template`
    names the concept. A placebo fits if it is of the concept's kind and has pictures, and labels for three judges that
    the concept has labels for, among them those that `template` names. The backend also asks for pictures of the
    reference's size, and for default judges that a client does not know.
    """
    by_name = {each.name: each for each in concepts}
    concept = by_name[template.concept]
    named = {template.selector, template.judge, template.second_judge} - {""}

    def fits(placebo: Concept) -> bool:
        shared = _labelled(placebo) & _labelled(concept)
        judged = len(shared) >= JUDGES and named <= shared
        return placebo.placebo and placebo.kind == concept.kind and bool(placebo.picture_digests) and judged

    placebo = any(fits(each) for each in by_name.values())
    return ControlKind.CONTROL_KIND_PLACEBO if placebo else ControlKind.CONTROL_KIND_CONCEPT_FREE


def _labelled(concept: Concept) -> set[str]:
    return {each.judge for each in concept.labels if each.labels}


def specs_of(
    template: AuditSpec,
    models: Iterable[Model],
    concepts: Iterable[Concept],
    names: Sequence[str],
    *,
    without_never: bool = False,
) -> list[AuditSpec]:
    """Return the audit of each model that is `chosen`, by a request that is the same for all but for its subject.

    The `template` may leave its concept out, and its reference and subject are not looked at. The reference is held
    against itself, which its request says. All are audited by their weights, without guards. Which control each gets is
    for the backend to say: one that never learned the concept is held against another. With `without_never` none is
    held against a model that never learned it.

    Raises:
        UneraseError: INVALID_ARGUMENT, there is no such concept, or more than one.
    """
    concepts = list(concepts)
    concept, reference, subjects = chosen(models, concepts, template.concept, names)
    specs = []
    for subject in subjects:
        spec = AuditSpec()
        spec.CopyFrom(template)
        spec.concept, spec.reference, spec.subject = concept, reference, subject
        spec.assume_reference = subject == reference
        spec.access = ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS
        if without_never:
            spec.control_kind = withheld(concepts, spec)
        specs.append(spec)
    return specs


def run_all(
    client: Client,
    specs: Sequence[AuditSpec],
    request_id: str,
    progress: Callable[[], AbstractContextManager[LiveProgress]],
) -> list[Audit]:
    """Create all audits, wait until they end and return them in order.

    They share what they have in common: the reference's pictures are made once. With the same `request_id` the same
    call again takes up the same audits.
    """
    audits = [client.create_audit(spec, request_id=f"{request_id}-{index}") for index, spec in enumerate(specs)]
    for audit in audits:
        with progress() as shown:
            for event in client.watch(audit.id):
                shown.show(event)
    return [persistently(client.get_audit, audit.id) for audit in audits]


def persistently(call: Callable[[str], Answer], audit_id: str, patience_seconds: float = 120.0) -> Answer:
    """Return the answer of a call about an audit that is safe to repeat, even if the connection breaks meanwhile.

    Raises:
        UneraseError: the last attempt's once the time is over, or one that does not pass.
    """
    give_up = time.monotonic() + patience_seconds
    while True:
        try:
            return call(audit_id)
        except UneraseError as error:
            if error.code not in _PASSING or time.monotonic() > give_up:
                raise
        # An overloaded machine needs time to answer.
        time.sleep(1.0)


def _root(name: str, bases: dict[str, str]) -> str:
    while base := bases.get(name):
        name = base
    return name


def _bad(field: str, description: str) -> UneraseError:
    return UneraseError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: {description}",
        reason="INVALID_REQUEST",
        violations=[FieldViolation(field, description)],
    )
