"""Wakes the campaigns of this process when one of their audits has ended in this process."""

import asyncio
from collections.abc import Iterable


class AuditWatches:
    """The audits in flight of this process's campaigns, each with the event of its campaign."""

    def __init__(self) -> None:
        self._wakes: dict[str, asyncio.Event] = {}

    def watch(self, audit_ids: Iterable[str], wake: asyncio.Event) -> None:
        """Set `wake` when one of the audits has ended."""
        for audit_id in audit_ids:
            self._wakes[audit_id] = wake

    def ended(self, audit_id: str) -> None:
        """Note that an audit has ended."""
        if (wake := self._wakes.pop(audit_id, None)) is not None:
            wake.set()

    def forget(self, wake: asyncio.Event) -> None:
        """Forget the audits of a campaign that is no longer worked on here."""
        for audit_id in [audit_id for audit_id, other in self._wakes.items() if other is wake]:
            del self._wakes[audit_id]
