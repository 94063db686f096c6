"""Checks the noise schedules of an audit's models, and says which are stepped by the reference's.

Subject, reference and control are stepped by the reference's timesteps, so that a folder that names another sampler
does not look like an erasure. `own_schedules` steps each by its own. Betas belong to the weights. A model whose betas
differ from the reference's is refused, because most often the file is wrong and the pictures of wrong betas look like
damage; `own_schedules` accepts it. Each model keeps its own prediction. Of flows, which have no betas, the reference
gives the shift. A flow and a model with betas are not versions of one model, and are refused whatever is set.
"""

from collections.abc import Iterator, Mapping

from unerase.v1.audits_pb2 import AuditSpec
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.schedules import (
    ScheduleConfig,
    audit_problem,
    folder_problems,
    read_schedule,
    scheduler_config,
)
from unerase_backend.catalogue.stepping import takes_other
from unerase_backend.coordinator.planning.model_checks import Problem


def schedule_refusals(spec: AuditSpec, catalogue: Catalogue) -> Iterator[Problem]:
    """Yield what is wrong with the schedules of a request whose models are all known.

    `own_schedules` is cleared in `spec` if it changes nothing. A scheduler configuration that cannot be read is left to
    the checks of the model's files.
    """
    known = _known(spec, catalogue)
    for field, name in known.items():
        folder = catalogue.model_parts(name).folder
        config = scheduler_config(folder)
        for bad in folder_problems(folder, config) if config is not None else ():
            yield Problem(field, f"the model {name!r} cannot be sampled: {bad}", "SCHEDULE_UNSUPPORTED")
    schedules = _schedules(known, catalogue)
    for field in list(schedules):
        config = scheduler_config(catalogue.model_parts(known[field]).folder)
        if unfit := audit_problem(config or {}):
            yield Problem(field, f"the model {known[field]!r} cannot be audited: {unfit}", "SCHEDULE_UNSUPPORTED")
            del schedules[field]
    reference = schedules.pop("spec.reference", None)
    differ = False
    if reference is not None:
        for field, other in schedules.items():
            if problem := _difference(known[field], other, reference, own=spec.own_schedules):
                yield Problem(field, problem, "SCHEDULES_DIFFER")
            differ |= takes_other(other, reference) or not other.trained_as(reference)
    spec.own_schedules = spec.own_schedules and differ


def stepped_otherwise(spec: AuditSpec, catalogue: Catalogue) -> Mapping[str, str]:
    """Return the models of a checked request that are stepped by another's schedule, each with that model's name."""
    if spec.own_schedules:
        return {}
    known = _known(spec, catalogue)
    schedules = _schedules(known, catalogue)
    reference = schedules.get("spec.reference")
    if reference is None:
        return {}
    return {
        known[field]: spec.reference
        for field, schedule in schedules.items()
        if known[field] != spec.reference and takes_other(schedule, reference)
    }


def _known(spec: AuditSpec, catalogue: Catalogue) -> dict[str, str]:
    """Return the request's models by field."""
    named = {"spec.subject": spec.subject, "spec.reference": spec.reference, "spec.control": spec.control}
    return {field: name for field, name in named.items() if name in catalogue.models}


def _schedules(known: Mapping[str, str], catalogue: Catalogue) -> dict[str, ScheduleConfig]:
    """Return the schedules that can be followed, by field."""
    folders = {field: catalogue.model_parts(name).folder for field, name in known.items()}
    return {
        field: read_schedule(config)
        for field, folder in folders.items()
        if (config := scheduler_config(folder)) is not None and not folder_problems(folder, config)
    }


def _difference(name: str, schedule: ScheduleConfig, reference: ScheduleConfig, *, own: bool) -> str:
    if schedule.flow != reference.flow:
        differ = f"the model {name!r} is {schedule.kind}, and the reference {reference.kind}"
        return f"{differ}: they are not versions of one model; name the reference that it was made from"
    if own or schedule.trained_as(reference):
        return ""
    differ = f"the model {name!r} has other betas than the reference: {schedule.training}, not {reference.training}"
    return f"{differ}; mend scheduler_config.json, or set spec.own_schedules if the model was trained so"
