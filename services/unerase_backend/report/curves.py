"""Curves over the effort: the budget of an evaluation, the optimisation steps of an attack, the figures of a finding.

The name of an arm or a figure may give the effort after an "@", as in "few-shot@40" or "auc@100".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from unerase.v1.types_pb2 import Finding
from unerase.v1.verdicts_pb2 import ArmResult, EvaluationResult
from unerase_backend.report import charts

_COUNTED = re.compile(r"(.*)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class FindingCurves:
    """A finding with its figures: curves of those reported at several points, and single figures."""

    finding: Finding
    curves: list[tuple[str, Markup]]
    figures: list[tuple[str, float]]


def budget_curves(result: EvaluationResult) -> Iterator[tuple[str, Markup]]:
    """Yield a curve of detection over the budget for each arm, with its title."""
    for arm, of_arm in groupby(result.curve, key=lambda point: point.arm):
        title = f"{result.title or result.name}{f', {arm}' if arm else ''}"
        yield title, charts.curve(title, list(of_arm))


def effort_curves(result: EvaluationResult) -> Iterator[tuple[str, Markup]]:
    """Yield a curve of detection over the effort, with its title, for each group of arms with several efforts."""
    found: dict[str, list[tuple[float, ArmResult]]] = {}
    for arm in result.arms:
        if match := _COUNTED.fullmatch(arm.arm):
            found.setdefault(match[1], []).append((float(match[2]), arm))
    for name, arms in found.items():
        if len({at for at, _ in arms}) > 1:
            title = f"{result.title or result.name}, {name}"
            whole = all(at.is_integer() for at, _ in arms)
            unit = "optimisation steps" if whole else "share of the steps"
            yield title, charts.over_steps(title, sorted(arms, key=lambda spent: spent[0]), unit)


def finding_order(finding: Finding) -> tuple[bool, int, str, float, int]:
    """Return the sort key of a finding: the order of the report, except "few-shot@5" before "few-shot@40"."""
    match = _COUNTED.fullmatch(finding.label)
    name, spent = (match[1], float(match[2])) if match else (finding.label, 0.0)
    return finding.HasField("case_index"), finding.case_index, name, spent, finding.role


def finding_curves(finding: Finding) -> FindingCurves:
    """Return a finding with its figures sorted into curves and single ones."""
    found: dict[str, list[tuple[float, float]]] = {}
    single = []
    for name, value in sorted(finding.figures.items()):
        if match := _COUNTED.fullmatch(name):
            found.setdefault(match[1], []).append((float(match[2]), value))
        else:
            single.append((name, value))
    curves = []
    for name, points in found.items():
        if len(points) > 1:
            curves.append((name, charts.figures(name, sorted(points), "step")))
        else:
            single.append((f"{name}@{points[0][0]:g}", points[0][1]))
    return FindingCurves(finding, curves, single)
