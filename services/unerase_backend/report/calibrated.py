"""Calibrations: computed from exported audits, shipped as JSON, printed as Markdown.

`unerase calibrate` finds `calibrate_files` by its entry point, so that the client does not import the backend.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from unerase_backend.report.parquet import read_parquet
from unerase_backend.report.text import visible
from unerase_backend.verdict.calibration import Calibrations, Trial, Truth, calibrate
from unerase_backend.verdict.roles import recorded_problem

SHIPPED = "calibration.json"
"""The testbed's calibration, in this module's folder; `docs/calibration.md` says how it was made."""

_SHOWN_BUDGETS = (1, 2, 4, 8, 16)


@cache
def shipped() -> Calibrations:
    """Return the calibration of the embedded testbed; empty if none is shipped."""
    file = files("unerase_backend.report").joinpath(SHIPPED)
    return Calibrations(json.loads(file.read_text()) if file.is_file() else None)


def calibrate_files(exported: Sequence[bytes]) -> tuple[str, str]:
    """Return the calibration from audits of several models, as JSON and as a Markdown table.

    `exported` are the audits' observations as Parquet.

    Raises:
        ValueError: a file does not hold exported observations, an audit's models or judges are the same, the audits do
            not belong together, no subject certainly holds the concept, or no subject never learned it.
    """
    trials = []
    for file in exported:
        audit = read_parquet(file)
        spec, models = audit.content.spec, audit.content.manifest.models
        subject = next((model for model in models if model.name == spec.subject), None)
        if subject is None:
            raise ValueError(f"the manifest of the audit {audit.audit_id} lacks its subject {spec.subject}")
        if problem := recorded_problem(spec, audit.content.concept, audit.content.manifest):
            raise ValueError(f"the audit {audit.audit_id} of {spec.subject} cannot be used: {problem}")
        words = audit.content.concept.names
        trials.append(Trial(spec, subject, audit.descriptions, audit.observations, words))
    calibrated = calibrate(trials)
    return json.dumps(calibrated, indent=1) + "\n", table(calibrated)


def table(calibrated: Mapping[str, Any]) -> str:
    """Return a calibration as Markdown: a row for each evaluation and budget, a column for each model."""
    models = [model["name"] for model in calibrated["models"]]
    truths = {model["name"]: model["truth"] for model in calibrated["models"]}
    marks = {Truth.HOLDS.value: " (holds it)", Truth.NEVER_LEARNED.value: " (never)", Truth.UNKNOWN.value: ""}
    head = ["evaluation", "best of", "sensitivity, %", "specificity, %"]
    head += [model.rpartition("/")[2] + marks[truths[model]] for model in models]
    lines = [_row(head), _row(["---"] * len(head))]
    for evaluation in calibrated["evaluations"]:
        last = len(evaluation["budgets"])
        for point in evaluation["budgets"]:
            if point["budget"] in _SHOWN_BUDGETS or point["budget"] == last:
                rates = [_interval(point["sensitivity"]), _interval(point["specificity"])]
                counts = [f"{point['models'][model]['hits']} of {point['models'][model]['cases']}" for model in models]
                lines.append(_row([evaluation["title"], str(point["budget"]), *rates, *counts]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    # Names of models and evaluations come from files: a "|" or a line break in them must not end a cell or a line.
    return "| " + " | ".join(visible(cell).replace("|", r"\|") for cell in cells) + " |"


def _interval(rate: Mapping[str, Any]) -> str:
    if not rate["cases"]:
        return "none scored"
    lower, upper = rate["wilson"]["lower"], rate["wilson"]["upper"]
    return f"{100 * rate['hits'] / rate['cases']:.0f} ({100 * lower:.0f} to {100 * upper:.0f})"
