"""Stores what the units of an audit share only once: their targets, the lists of other concepts, the lists of cases.

A planned or stored unit names each of these parts by SHA-256 and holds only the indices of its cases. So the size of an
audit's rows grows with its units, not with units times concept. A part is stored as a `Unit` that holds nothing else.
`whole` puts the parts back into a unit before the unit goes to a room. Units that an earlier version stored contain
everything, and are whole already.

The descriptions with which the audit was planned are stored beside the parts, because the verdict needs them.
"""

import hashlib
from collections.abc import Mapping, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import ListEvaluationsResponse
from unerase.v1.types_pb2 import Case, EvaluationDescription

DESCRIPTIONS = "descriptions"
"""The key of an audit's descriptions; the key of a part is its digest."""


class Parts:
    """Collects the parts of an audit that is being planned: their bytes by digest."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def target(self, target: Target) -> str:
        """Add a target and return its digest."""
        return self._keep(Unit(target=target))

    def others(self, others: Sequence[Target]) -> str:
        """Add a list of other concepts and return its digest; empty if the list is empty."""
        return self._keep(Unit(others=others)) if others else ""

    def cases(self, cases: Sequence[Case]) -> str:
        """Add a list of cases and return its digest."""
        return self._keep(Unit(cases=cases))

    def descriptions(self, descriptions: Sequence[EvaluationDescription]) -> None:
        """Add the descriptions with which the audit is planned."""
        planned = ListEvaluationsResponse(evaluations=descriptions)
        self.contents[DESCRIPTIONS] = planned.SerializeToString(deterministic=True)

    def _keep(self, part: Unit) -> str:
        content = part.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return digest


def descriptions_of(contents: Mapping[str, bytes]) -> list[EvaluationDescription]:
    """Return the descriptions with which an audit was planned; an earlier version stored none."""
    return list(ListEvaluationsResponse.FromString(contents.get(DESCRIPTIONS, b"")).evaluations)


def digests_of(unit: Unit) -> list[str]:
    """Return the digests of the parts that a unit lacks; none if it is whole."""
    return [digest for digest in (unit.target_digest, unit.others_digest, unit.cases_digest) if digest]


def whole(unit: Unit, contents: Mapping[str, bytes]) -> Unit:
    """Return a unit with its parts in place, as rooms and the unit cache need it.

    Raises:
        KeyError: `contents` lacks a part.
    """
    restored = Unit()
    restored.CopyFrom(unit)
    restored.target_digest = restored.others_digest = restored.cases_digest = ""
    for digest in (unit.target_digest, unit.others_digest):
        if digest:
            restored.MergeFromString(contents[digest])
    if unit.cases_digest:
        cases = {case.index: case for case in Unit.FromString(contents[unit.cases_digest]).cases}
        restored.ClearField("cases")
        restored.cases.extend(cases[case.index] for case in unit.cases)
    return restored
