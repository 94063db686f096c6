"""What `unerase check` finds: everything that can be known of a catalogue and its models without computing."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from unerase_backend import compute_plan, machine
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.file_findings import Finding
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.classification.judge_check import judge_findings
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.serve_settings import ServeSettings, read_settings

_INVALID = "CATALOGUE_INVALID"


def check(
    catalogues: Sequence[Path],
    models: Sequence[str] = (),
    cards_gb: Sequence[float] = (),
    *,
    weights: bool = False,
) -> dict[str, Any]:
    """Return what is found, as `unerase check --json` prints it.

    What is not given comes from the environment (UNERASE_SERVE_CATALOGUES, UNERASE_SERVE_DEVICE and so on), as for
    `unerase serve`.

    `problems` and `notes` are lists of place, description and reason; `models` are messages `ModelCheck`; `device` are
    the lines of how `unerase serve` would compute, on GPUs with `cards_gb` GB free if there are any, and otherwise on
    this machine's; `device_problem` says why it could not. With `weights`, every weight of the models is read for
    values that are not finite; `weights_read` says whether. Without `models`, those of the files are checked, or the
    testbed's where there are no files.

    Raises:
        ValueError: there is no such model, or a setting of the environment is bad.
    """
    settings = read_settings(catalogues=tuple(map(str, catalogues)) or None)
    try:
        catalogue = Catalogue.load(settings.catalogues)
    except InvalidRequestError as error:
        return _answer([Finding(each.field, each.description, _INVALID) for each in error.violations])
    embedded = Catalogue.load() if settings.catalogues else None
    names = list(models) or _added(catalogue, embedded, "models") or list(catalogue.models)
    _check_names(names, catalogue)
    # Imports torch, which takes seconds that a wrong file should not cost.
    from unerase_backend.checking.concepts import concept_findings
    from unerase_backend.checking.models import check_model, problem_of
    from unerase_backend.checking.weights import find_infinite

    concepts = _added(catalogue, embedded, "concepts") if embedded else list(catalogue.concepts)
    findings = [*judge_findings(catalogue), *concept_findings(catalogue, names, concepts)]
    lines, problem = _device(catalogue, settings, cards_gb)
    shared, checked = SharedFindings(), []
    for name in names:
        found = check_model(catalogue, name, shared)
        if weights and not found.problems:
            infinite = Findings(name)
            find_infinite(catalogue, name, infinite, shared)
            found.problems.extend(map(problem_of, infinite.problems))
        checked.append(json_format.MessageToDict(found, **_FORM))
    return {
        **_answer(findings),
        "models": checked,
        "device": lines,
        "device_problem": problem,
        "weights_read": weights,
    }


_FORM: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}


def _answer(findings: Sequence[Finding]) -> dict[str, Any]:
    def listed(problem: bool) -> list[dict[str, str]]:
        return [
            {"place": each.place, "description": each.description, "reason": each.reason}
            for each in findings
            if each.problem == problem
        ]

    return {
        "problems": listed(True),
        "notes": listed(False),
        "models": [],
        "device": [],
        "device_problem": "",
        "weights_read": False,
    }


def _added(catalogue: Catalogue, embedded: Catalogue | None, section: str) -> list[str]:
    """Return the names of the entries that the given files add to the embedded testbed's."""
    known = getattr(embedded, section) if embedded else {}
    return [name for name in getattr(catalogue, section) if embedded and name not in known]


def _check_names(names: Sequence[str], catalogue: Catalogue) -> None:
    for name in names:
        if name not in catalogue.models:
            near = difflib.get_close_matches(name, list(catalogue.models), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no model {name!r}{hint}")


def _device(catalogue: Catalogue, settings: ServeSettings, cards_gb: Sequence[float]) -> tuple[list[str], str]:
    """Return how the rooms would compute, as lines, or why they cannot."""
    try:
        found = [machine.Card("a GPU", int(gigabytes * 1e9)) for gigabytes in cards_gb] or _cards(settings)
        return compute_plan.plan_of(compute_plan.load_of(catalogue), settings, found).lines(), ""
    except ValueError as error:
        return [], str(error)


def _cards(settings: ServeSettings) -> list[machine.Card]:
    """Return this machine's GPUs: those that there are, unless the environment sets the device."""
    if "device" in settings.model_fields_set:
        return machine.cards() if settings.device == "cuda" else []
    try:
        return machine.cards()
    except ValueError:
        return []
