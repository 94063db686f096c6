"""At most so many at once of something that callers share, fair between tenants: one that asks for much waits for
itself."""

import itertools
from contextlib import AbstractAsyncContextManager

from unerase_backend.coordinator.turns import Turns
from unerase_backend.runtime.access import CALLER


class TenantQueue:
    """A queue before `places`; a free place goes to the tenant that holds the fewest, and within it to who came first.

    The tenant is that of the call under way. What the coordinator does by itself is a tenant without a name.
    """

    def __init__(self, places: int) -> None:
        self._turns = Turns(places)
        self._numbers = itertools.count()

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for a place, and hold it."""
        return self._turns.turn(CALLER.get().tenant, (next(self._numbers), ""))
