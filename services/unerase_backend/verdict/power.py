"""What an audit of so many cases would be able to say: the chance of each conclusion on models of known truth.

`unerase power` finds `power` by its entry point. The chances are those of `simulation`, with its assumptions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict.decision import tolerance_problem
from unerase_backend.verdict.simulated_models import TRUTHS, Truth
from unerase_backend.verdict.simulation import BATTERY, PLAIN, Conditions, destruction_bounds, simulate

MOST_CASES, MOST_AUDITS, MOST_ROWS = 512, 20_000, 200
SHOWN_IN = (0.1, 0.2, 0.4)
"""The shares of cases in which the avoided models show the concept, in one evaluation."""
DESTRUCTION = 0.3
"""What the avoided models lost: enough that the likelihood alone does not give them away."""


def power(
    *,
    cases: Sequence[int],
    false_positives: Sequence[float],
    shared_errors: Sequence[float],
    evaluations: Sequence[str] = (),
    decided_by: str = "both",
    tolerance: float | None = None,
    audits: int = 1000,
    chance: float = 0.8,
    seed_base: int = 0,
) -> dict[str, Any]:
    """Return the chances as plain data: one row for each combination of cases, false positives and shared errors.

    `false_positives` are a judge's, a picture; `shared_errors` the part of them that the second judge has in common;
    `evaluations` those that run, of `simulation.BATTERY` (all if empty); `tolerance` is of the excess, its default at
    each number of cases if None. `enough` names, for each of the judges' qualities, the fewest of the given cases at
    which a removed model is called removed with at least `chance`, or 0.

    Raises:
        ValueError: a number is out of its bounds, or an evaluation is not known.
    """
    names = tuple(name for name in BATTERY if name in evaluations) if evaluations else tuple(BATTERY)
    if problem := _problem(cases, false_positives, shared_errors, evaluations, decided_by, tolerance, audits, chance):
        raise ValueError(problem)
    bounds = destruction_bounds(audits, np.random.default_rng(derive_seed(seed_base, "likelihood")))
    qualities = [(false, shared) for false in false_positives for shared in shared_errors]
    rows, enough = [], []
    for false, shared in qualities:
        of_quality = []
        for each in sorted(set(cases)):
            at = Conditions(each, false, decided_by == "both", shared, evaluations=names, tolerance=tolerance)
            of_quality.append(_row(at, bounds, seed_base))
        rows += of_quality
        reached = [row["cases"] for row in of_quality if row["models"][0]["removed"] >= chance]
        enough.append({"false_positives": false, "shared_errors": shared, "cases": min(reached, default=0)})
    return {"decided_by": decided_by, "evaluations": list(names), "chance": chance, "rows": rows, "enough": enough}


def _problem(
    cases: Sequence[int],
    false_positives: Sequence[float],
    shared_errors: Sequence[float],
    evaluations: Sequence[str],
    decided_by: str,
    tolerance: float | None,
    audits: int,
    chance: float,
) -> str:
    """Return what is wrong with a request; empty if nothing is."""
    if unknown := sorted(set(evaluations) - BATTERY.keys()):
        return f"evaluations: {unknown[0]!r} is not simulated, but {', '.join(BATTERY)}"
    if evaluations and PLAIN not in evaluations:
        return f"evaluations: {PLAIN!r} must be among them, because nothing is called removed without it"
    if decided_by not in ("judge", "both"):
        return f"decided by: must be judge or both, not {decided_by!r}"
    bounded = {
        "cases": (cases, 1, MOST_CASES),
        "audits": ([audits], 1, MOST_AUDITS),
        "false positives": (false_positives, 0, 1),
        "shared errors": (shared_errors, 0, 1),
        "chance": ([chance], 0, 1),
    }
    for what, (values, least, most) in bounded.items():
        if wrong := [value for value in values if not least <= value <= most]:
            return f"{what}: must be from {least} to {most}, not {wrong[0]:g}"
    if len(cases) * len(false_positives) * len(shared_errors) > MOST_ROWS:
        return f"the table would have more than {MOST_ROWS} rows"
    problem = tolerance_problem("excess", tolerance) if tolerance is not None else ""
    return f"tolerance: {problem}" if problem else ""


def _row(conditions: Conditions, bounds: np.ndarray[Any, np.dtype[np.float64]], seed_base: int) -> dict[str, Any]:
    models = []
    for truth in _truths(conditions.evaluations):
        seed = derive_seed(seed_base, truth.name, conditions.cases, f"{conditions.false_positive:g}")
        conclusions = simulate(truth, conditions, bounds, np.random.default_rng(seed))
        models.append({"model": truth.name} | {name: _share(conclusions, one) for name, one in _CONCLUSIONS.items()})
    return {
        "cases": conditions.cases,
        "tolerance": conditions.tolerances.excess,
        "tolerance_of_one_draw": conditions.tolerances.excess_of_one_draw,
        "false_positives": conditions.false_positive,
        "shared_errors": conditions.shared,
        "models": models,
    }


_CONCLUSIONS = {
    "removed": Conclusion.CONCLUSION_REMOVED,
    "avoided": Conclusion.CONCLUSION_AVOIDED,
    "not_erased": Conclusion.CONCLUSION_NOT_ERASED,
    "inconclusive": Conclusion.CONCLUSION_INCONCLUSIVE,
    "uninformative": Conclusion.CONCLUSION_UNINFORMATIVE,
}


def _share(conclusions: np.ndarray[Any, np.dtype[np.int64]], one: int) -> float:
    return float(np.mean(conclusions == one))


def _truths(evaluations: Sequence[str]) -> list[Truth]:
    """Return a removed model, and models that show the concept in a share of cases of one evaluation."""
    brought_back_by = "textual-inversion" if "textual-inversion" in evaluations else evaluations[-1]
    removed, (_, intact) = TRUTHS[0], TRUTHS[2:4]
    hidden = [
        replace(
            intact,
            name=f"shown in {100 * share:.0f} % of cases by {brought_back_by}",
            subject=tuple(share * (name == brought_back_by) for name in BATTERY),  # type: ignore[arg-type]
            destruction=DESTRUCTION,
        )
        for share in SHOWN_IN
    ]
    return [removed, *hidden]
