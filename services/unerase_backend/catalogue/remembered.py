"""What was computed of entries once, by kind and name, for all threads of a process."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from unerase_backend.catalogue.definitions import is_registered

Value = TypeVar("Value")

_MOST_REGISTERED = 4096
_NOTHING: Any = object()


class Remembered:
    """Values of entries. A catalogue's entries are few and all are kept; of registered models the last ones are."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}
        self._locks: dict[tuple[str, str], threading.RLock] = {}
        self._registered: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, kind: str, name: str, compute: Callable[[], Value]) -> Value:
        """Return what `compute` returned for this entry first; errors are not remembered, and entries do not wait."""
        key = (kind, name)
        with self._lock:
            lock = self._locks.setdefault(key, threading.RLock())
            if is_registered(name):
                self._registered[key] = None
                self._registered.move_to_end(key)
                while len(self._registered) > _MOST_REGISTERED:
                    oldest, _ = self._registered.popitem(last=False)
                    self._values.pop(oldest, None)
                    self._locks.pop(oldest, None)
        with lock:
            found: Value = self._values.get(key, _NOTHING)
            if found is _NOTHING:
                found = self._values[key] = compute()
            return found
