"""How much one tenant may have under way at once: calls, and among them streams that only wait.

Without such a limit a tenant's open calls would take the memory that others need. Each is counted by tenant, so that
whoever reaches the limit meets it alone; those who need no token (health) are counted together.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from unerase_backend.runtime.errors import ExhaustedError

CALLS = 256
"""Calls of one tenant that may be under way; each may hold a request of 4 MiB."""
WATCHES = 2000
"""Watches of one tenant that may be open; each holds some kilobytes (docs/limits.md)."""
_AGAIN_SECONDS = 1.0


class Places:
    """The places that are taken."""

    def __init__(self, calls: int = CALLS, watches: int = WATCHES) -> None:
        self._most = {False: calls, True: watches}
        self._taken: Counter[tuple[str | None, bool]] = Counter()

    @contextmanager
    def take(self, tenant: str | None, *, watch: bool) -> Iterator[None]:
        """Hold one of a tenant's places; None stands for those whom nobody knows.

        Raises:
            ExhaustedError: there is none left.
        """
        key, most = (tenant, watch), self._most[watch]
        if self._taken[key] >= most:
            what = "watches are open" if watch else "calls are under way"
            raise ExhaustedError(
                f"{most} {what}, the most that one tenant may have; end some first",
                reason="WATCHES_FULL" if watch else "CALLS_FULL",
                retry_after_seconds=_AGAIN_SECONDS,
            )
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
