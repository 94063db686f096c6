"""How an evaluation's draws decide its cases, from the rows of an observations table (docs/verdict.md).

The backend decides in the same way; a test holds the two to each other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from unerase._arrow import JUDGES
from unerase.v1.types_pb2 import DecidedBy, EvaluationDescription

Row = Mapping[str, Any]

COLUMNS = [
    "evaluation",
    "role",
    "case_index",
    "arm",
    "variant",
    "access",
    "status",
    "reason",
    "picture_digest",
    "prompt",
] + [f"{judge}_{what}" for judge in JUDGES for what in ("name", "score", "detected", "label")]
"""The columns that this needs."""

_LEFT_OUT = ("excluded", "not_applicable")


@dataclass(frozen=True)
class Decided:
    """One case of the subject."""

    detected: bool | None
    """None if the case has no scored draw."""
    draw: Row
    """The draw that decided; where none did, the first one, whose status and reason say why."""
    doubtful: bool
    """At least one draw is unscored, and might have been the one that decides."""


def decide(
    rows: Iterable[Row], description: EvaluationDescription, decided_by: DecidedBy.ValueType
) -> dict[int, Decided]:
    """Return the subject's cases by their index, from the rows of one evaluation and one access.

    The selector picks the deciding draw with its highest score, the first in order of arm and variant among equals. A
    withheld draw shows nothing, and is picked only if every scored draw is withheld.
    """
    rows = list(rows)
    controlled = {row["arm"] for row in rows if row["role"] == "control"}
    deciding = [
        row
        for row in rows
        if row["role"] == "subject"
        and _decides(description, row["arm"])
        # What the control did not do cannot be compared with it.
        and (row["arm"] in controlled or not controlled)
    ]
    deciding.sort(key=lambda row: (row["case_index"], row["arm"], row["variant"]))
    both = decided_by == DecidedBy.DECIDED_BY_BOTH
    return {case: _decided(list(draws), both) for case, draws in groupby(deciding, lambda row: row["case_index"])}


def _decided(draws: Sequence[Row], both: bool) -> Decided:
    existing = [row for row in draws if row["status"] not in _LEFT_OUT]
    if not existing:
        return Decided(None, draws[0], doubtful=False)
    shown = [row for row in existing if _is_scored(row)]
    withheld = [row for row in existing if row["status"] == "withheld"]
    doubtful = len(shown) + len(withheld) < len(existing)
    if shown:
        # max gives the first of equals.
        picked = max(shown, key=lambda row: float(row["selector_score"]))
        return Decided(
            bool(picked["judge_detected"] and (picked["second_judge_detected"] or not both)), picked, doubtful
        )
    if withheld:
        return Decided(False, withheld[0], doubtful)
    return Decided(None, existing[0], doubtful)


def _is_scored(row: Row) -> bool:
    scores = [row[f"{judge}_score"] for judge in JUDGES]
    return row["status"] == "scored" and all(score is not None and math.isfinite(score) for score in scores)


def _decides(description: EvaluationDescription, arm: str) -> bool:
    """Whether an arm takes part; a deciding arm "prompt@*" stands for every arm that begins "prompt@"."""
    return not description.deciding_arms or any(
        arm.startswith(name[:-1]) if name.endswith("*") else arm == name for name in description.deciding_arms
    )
