"""How the clients of a storm ask."""

import time
from collections.abc import Callable
from typing import TypeVar

from unerase import ClientSettings, UneraseError

SETTINGS = ClientSettings(watch_patience_seconds=300)

Answer = TypeVar("Answer")


def insist(ask: Callable[[], Answer]) -> Answer:
    """Ask until there is an answer: what is not accepted was not lost."""
    while True:
        try:
            return ask()
        except UneraseError as error:
            if error.code.name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
                raise
            time.sleep(0.5)
