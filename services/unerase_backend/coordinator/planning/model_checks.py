"""Checks that a request's reference, control and judges fit: no model is compared with itself.

The catalogue says what a model was made from and what it never learned. A request may go beyond that only with
`assume_reference` or `assume_control`.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from unerase.v1.audits_pb2 import AuditSpec
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.findings import SCHEDULE
from unerase_backend.catalogue.listing import loadable_model
from unerase_backend.catalogue.model_families import family_of_model
from unerase_backend.runtime.errors import InvalidRequestError, PreconditionError, UnsafeModelError
from unerase_backend.verdict import roles


class Problem(NamedTuple):
    """What is wrong with a field, and the machine-readable reason."""

    field: str
    description: str
    reason: str = InvalidRequestError.reason


def default_control(spec: AuditSpec, catalogue: Catalogue) -> str:
    """Return the control of an audit that names none: the concept's own control.

    If there is none, as for a custom concept that names none, or if it makes pictures of another size, is of another
    family, or is the subject or the reference, by name or by the weights that decide, return the next model of the
    subject's base that never learned the concept or one of its words; empty if there is none.
    """
    entry, models = catalogue.concepts[spec.concept], catalogue.models
    if entry.control and entry.control not in models:
        return entry.control
    root = catalogue.chain(spec.subject)[-1]
    own = [entry.control] if entry.control else []
    if own and any(usable_problems({"spec.control": own[0]}, catalogue)):
        # The request is refused with the reason, rather than given another control in silence.
        return own[0]
    # A generator, because looking at a model's weights reads all of them.
    others = (
        name
        for name, model in models.items()
        if name != entry.control
        and roles.known_never_learned(model.never_learned, spec.concept, entry.names)
        and catalogue.chain(name)[-1] == root
        and not any(usable_problems({"spec.control": name}, catalogue))
    )
    side, family = models[spec.reference].resolution, family_of_model(catalogue, spec.subject)
    fitting = (
        name
        for name in itertools.chain(own, others)
        if models[name].resolution == side and family_of_model(catalogue, name) == family
    )
    return next((name for name in fitting if not _control_problem(name, spec, catalogue)), "")


def usable_problems(roles: Mapping[str, str], catalogue: Catalogue) -> Iterator[Problem]:
    """Yield a problem for each model that cannot be loaded, by its files' headers; `roles` are names by field.

    Schedules are left to `schedule_checks`.
    """
    for field, name in roles.items():
        try:
            loadable_model(catalogue, name)
        except (PreconditionError, UnsafeModelError) as error:
            if error.reason != SCHEDULE:
                yield Problem(field, error.message, error.reason)


def default_reference(spec: AuditSpec, catalogue: Catalogue) -> str:
    """Return the reference of an audit that names none: the subject's whole pipeline; empty if that is the subject."""
    root = catalogue.chain(spec.subject)[-1]
    return root if root != spec.subject else ""


def without_reference(spec: AuditSpec) -> Problem:
    """Return the problem of an audit that names no reference for a subject without a base."""
    description = (
        f"must be given: the subject {spec.subject!r} is a whole pipeline and has no base; name the model that it was "
        "made from, or the subject itself with spec.assume_reference"
    )
    return Problem("spec.reference", description, "REFERENCE_MISSING")


def role_problems(spec: AuditSpec, catalogue: Catalogue) -> Iterator[Problem]:
    """Yield what is wrong with the reference and the control of a request whose names are all known.

    An assumption that is not needed is cleared in `spec`, because a verdict names only the assumptions that it rests
    on. Of a whole pipeline the catalogue cannot say what it was made from, so whoever names its reference assumes it.
    """
    problem = _reference_problem(spec, catalogue)
    if not problem and not _of_one_base(spec, catalogue):
        names = catalogue.chain(spec.reference)[-1], catalogue.chain(spec.subject)[-1]
        problem = "has another base than the subject: {!r}, not {!r}".format(*names)
        spec.assume_reference |= not catalogue.models[spec.subject].base
    if problem and not spec.assume_reference:
        todo = "name the model that the subject was made from, or set spec.assume_reference"
        yield Problem("spec.reference", f"{problem}; {todo}", "REFERENCE_UNFIT")
    spec.assume_reference = spec.assume_reference and bool(problem)

    known = not spec.control or _is_known_control(spec, catalogue)
    if spec.control and (problem := _control_problem(spec.control, spec, catalogue)):
        todo = "name a model that never learned the concept, or none"
        yield Problem("spec.control", f"{problem}; {todo}", "CONTROL_UNFIT")
    elif not known and not spec.assume_control:
        todo = "name another control, add the concept to the model's never_learned, or set spec.assume_control"
        said = f"the catalogue does not say that it never learned {spec.concept!r}"
        yield Problem("spec.control", f"{said}; {todo}", "CONTROL_UNKNOWN")
    spec.assume_control = spec.assume_control and not known


def judge_problems(names: Mapping[str, str], catalogue: Catalogue) -> Iterator[Problem]:
    """Yield a problem for each judge that has the same weights as a judge before it; `names` are by field."""
    seen: dict[str, str] = {}
    for field, name in names.items():
        earlier = seen.setdefault(catalogue.judge_weights(name), field)
        if earlier != field:
            description = f"has the same weights as spec.{earlier}: a judge may not confirm itself; name another one"
            yield Problem(f"spec.{field}", description, "JUDGES_ALIKE")


def _control_problem(control: str, spec: AuditSpec, catalogue: Catalogue) -> str:
    """Return why a model cannot be the control of this subject and reference, even if assumed; empty if it can."""
    beside = {"subject": spec.subject, "reference": spec.reference}
    others = {role: catalogue.describe_model(name) for role, name in beside.items()}
    return roles.control_problem(catalogue.describe_model(control), others)


def _is_known_control(spec: AuditSpec, catalogue: Catalogue) -> bool:
    never_learned = catalogue.models[spec.control].never_learned
    return roles.known_never_learned(never_learned, spec.concept, catalogue.concepts[spec.concept].names)


def _reference_problem(spec: AuditSpec, catalogue: Catalogue) -> str:
    """Return why, by the catalogue, the reference cannot be the subject's original; empty if it can."""
    subject, reference = catalogue.describe_model(spec.subject), catalogue.describe_model(spec.reference)
    if problem := roles.reference_problem(reference, subject, spec.access):
        return problem
    if spec.subject in catalogue.chain(spec.reference):
        return f"was itself made from the subject {spec.subject!r}"
    return ""


def _of_one_base(spec: AuditSpec, catalogue: Catalogue) -> bool:
    """Return whether subject and reference were made from the same whole pipeline, by its weights."""
    roots = [catalogue.describe_model(catalogue.chain(name)[-1]) for name in (spec.subject, spec.reference)]
    return roles.same_weights(*roots)
