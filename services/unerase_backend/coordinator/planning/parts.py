"""What the units of an audit share, kept once: their targets, the lists of other concepts, the lists of cases.

A unit that is planned or kept names each of them by SHA-256 and holds the indices of its cases alone, so that an
audit's rows grow with its units and not with units times concept. A part is kept as a `Unit` that holds nothing else;
`whole` puts the parts back into a unit on its way to a room. Units that an earlier version kept hold everything
themselves, and are whole already.
"""

import hashlib
from collections.abc import Mapping, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Case


class Parts:
    """Collects the parts of an audit that is being planned: their bytes by digest."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def target(self, target: Target) -> str:
        """Keep a target, and return its digest."""
        return self._keep(Unit(target=target))

    def others(self, others: Sequence[Target]) -> str:
        """Keep a list of other concepts, and return its digest; empty where there are none."""
        return self._keep(Unit(others=others)) if others else ""

    def cases(self, cases: Sequence[Case]) -> str:
        """Keep a list of cases, and return its digest."""
        return self._keep(Unit(cases=cases))

    def _keep(self, part: Unit) -> str:
        content = part.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return digest


def digests_of(unit: Unit) -> list[str]:
    """Return the digests of the parts that a unit lacks; none where it is whole."""
    return [digest for digest in (unit.target_digest, unit.others_digest, unit.cases_digest) if digest]


def whole(unit: Unit, contents: Mapping[str, bytes]) -> Unit:
    """Return a unit with its parts in place, as rooms and keys know it.

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
