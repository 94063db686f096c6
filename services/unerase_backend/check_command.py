"""What `unerase check` finds: everything that can be known of a catalogue and its models without computing."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from unerase_backend import compute_plan
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.file_findings import Finding
from unerase_backend.classification.judge_check import judge_findings
from unerase_backend.runtime.errors import InvalidRequestError

_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
_INVALID = "CATALOGUE_INVALID"


def check(catalogues: Sequence[Path], models: Sequence[str] = (), device_gb: float | None = None) -> dict[str, Any]:
    """Return what is found, as `unerase check --json` prints it.

    `problems` and `notes` are lists of place, description and reason; `models` are messages `ModelCheck`; `device` are
    the lines of how `unerase serve` would compute, on a GPU with `device_gb` GB free if that is given, and otherwise on
    this machine's; `device_problem` says why it could not. Without `models`, those of the files are checked, or the
    testbed's where there are no files.

    Raises:
        ValueError: there is no such model.
    """
    try:
        catalogue = Catalogue.load([str(path.expanduser().resolve()) for path in catalogues])
    except InvalidRequestError as error:
        return _answer([Finding(each.field, each.description, _INVALID) for each in error.violations])
    embedded = Catalogue.load() if catalogues else None
    names = list(models) or _added(catalogue, embedded, "models") or list(catalogue.models)
    _check_names(names, catalogue)
    # Imports torch, which takes seconds that a wrong file should not cost.
    from unerase_backend.checking.concepts import concept_findings
    from unerase_backend.checking.models import check_model

    concepts = _added(catalogue, embedded, "concepts") if catalogues else list(catalogue.concepts)
    findings = [*judge_findings(catalogue), *concept_findings(catalogue, names, concepts)]
    lines, problem = _device(catalogue, device_gb)
    checked = [json_format.MessageToDict(check_model(catalogue, name), **_FORM) for name in names]
    return {**_answer(findings), "models": checked, "device": lines, "device_problem": problem}


_FORM: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}


def _answer(findings: Sequence[Finding]) -> dict[str, Any]:
    def listed(problem: bool) -> list[dict[str, str]]:
        return [
            {"place": each.place, "description": each.description, "reason": each.reason}
            for each in findings
            if each.problem == problem
        ]

    return {"problems": listed(True), "notes": listed(False), "models": [], "device": [], "device_problem": ""}


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


def _device(catalogue: Catalogue, device_gb: float | None) -> tuple[list[str], str]:
    """Return how the rooms would compute, as lines, or why they cannot."""
    load = compute_plan.load_of(catalogue)
    try:
        if device_gb is not None:
            card = compute_plan.Card("a GPU", int(device_gb * 1e9))
            return compute_plan.plan_gpus(load, _DTYPES["cuda"], [card]).lines(), ""
        try:
            cards = compute_plan.cards()
        except ValueError:
            return compute_plan.plan_cpu(load, _DTYPES["cpu"], compute_plan.free_memory()).lines(), ""
        return compute_plan.plan_gpus(load, _DTYPES["cuda"], cards).lines(), ""
    except ValueError as error:
        return [], str(error)
