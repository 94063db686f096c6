"""What the models of one check share: a base, a file, a module. It is examined once, and found for each of them.

A catalogue may hold thousands of changes of one base.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from unerase_backend.catalogue.findings import Findings

Found = TypeVar("Found")


class SharedFindings:
    """What was examined, by what it was. It lives as long as one check, since files change."""

    def __init__(self) -> None:
        self._examined: dict[Hashable, tuple[Any, Findings]] = {}

    def examined(self, what: Hashable, findings: Findings, examine: Callable[[Findings], Found]) -> Found:
        """Return what `examine` returned for `what` first, and add the problems and notes that it found to `findings`.

        Whoever gets it must not change it. Errors are not kept.
        """
        if what not in self._examined:
            own = Findings(findings.model)
            self._examined[what] = examine(own), own
        found, own = self._examined[what]
        findings.add(own)
        result: Found = found
        return result
