"""How long to wait for the check of a model that is registered; shared by both clients, without I/O."""

import json
import time
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import json_format, struct_pb2

from unerase._errors import FieldViolation, UneraseError
from unerase._settings import ClientSettings
from unerase._watching import not_in_time
from unerase.v1.models_pb2 import ModelRegistration, RegistrationState

# Checks read headers and hash files: seconds for most models, minutes for large ones.
_FIRST_SECONDS, _LONGEST_SECONDS = 0.1, 5.0


class Registering:
    """The waits between two questions for one registration."""

    def __init__(self, name: str, settings: ClientSettings, timeout: float | None) -> None:
        self._name = name
        self._usual = settings.timeout_seconds
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._next = _FIRST_SECONDS

    def ended(self, registration: ModelRegistration) -> bool:
        """Say whether the check has ended."""
        return registration.state != RegistrationState.REGISTRATION_STATE_CHECKING

    def delay(self) -> float:
        """Return the seconds to wait before the next question.

        Raises:
            UneraseError: DEADLINE_EXCEEDED, at the caller's deadline.
        """
        wait, self._next = self._next, min(2 * self._next, _LONGEST_SECONDS)
        if self._ends is not None and time.monotonic() + wait >= self._ends:
            raise not_in_time("model", f"the check of model {self._name} did not end in time; it goes on")
        return wait

    def asking(self) -> float:
        """Return the seconds that the next question may take."""
        return self._usual if self._ends is None else max(0.0, min(self._usual, self._ends - time.monotonic()))


def entry_of(entry: Mapping[str, Any]) -> struct_pb2.Struct:
    """Return a catalogue's entry as the message that holds it.

    Raises:
        UneraseError: INVALID_ARGUMENT, a value cannot be sent, such as a date or NaN.
    """
    try:
        return json_format.Parse(json.dumps(dict(entry), allow_nan=False), struct_pb2.Struct())
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        violation = FieldViolation("model.entry", f"must hold texts, numbers, lists and mappings alone: {error}")
        raise UneraseError(
            grpc.StatusCode.INVALID_ARGUMENT, str(violation.description), violations=[violation]
        ) from None
