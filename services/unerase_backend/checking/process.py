"""Checks one model in a process of its own, so that a server needs neither torch nor its memory for it.

The process gets its request as JSON on stdin, and writes its answer to stdout. A model of the catalogue, or a
registered one, is checked; one that is to be registered is checked, and its files are fetched and hashed.
"""

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from unerase.v1.models_pb2 import ModelCheck
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UnavailableError, UneraseError
from unerase_backend.runtime.settings import RoomSettings

_SECONDS = 120
# Gigabytes may have to be fetched and hashed.
_REGISTERING_SECONDS = 2 * 3600
_MODULE = "unerase_backend.checking.process"


@dataclass(frozen=True)
class Registrable:
    """What a process found of a model that is to be registered."""

    check: ModelCheck | None = None
    """None if an error came first."""
    content: bytes = b""
    """Its definition; empty if it is refused."""
    reason: str = ""
    """Why it is refused, machine-readable; empty if it is not."""
    message: str = ""


def check_in_process(settings: RoomSettings, name: str) -> ModelCheck:
    """Return what `checking.models.check_model` finds of the model `name` of the catalogue of these settings.

    Raises:
        UnavailableError: the process did not end in time, or ended without an answer.
    """
    try:
        # The command is this interpreter and this module.
        ended = subprocess.run(  # noqa: S603
            _COMMAND,
            input=_request(settings, name=name),
            stdout=subprocess.PIPE,
            check=False,
            timeout=_SECONDS,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise _late(name, _SECONDS) from None
    if ended.returncode != 0:
        raise _ended(name)
    return ModelCheck.FromString(ended.stdout)


async def register_in_process(
    settings: RoomSettings, name: str, entry: Mapping[str, Any], seconds: float = _REGISTERING_SECONDS
) -> Registrable:
    """Return what a process finds of a model that is to be registered; it ends if the task is cancelled.

    `entry` is as in `catalogue.registering.Candidate`.

    Raises:
        UnavailableError: something that the model is fetched from does not answer, or as `check_in_process`.
    """
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=_environment()
    )
    try:
        async with asyncio.timeout(seconds):
            answer, _ = await process.communicate(_request(settings, name=name, entry=dict(entry)))
    except TimeoutError:
        raise _late(name, seconds) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise _ended(name)
    read = json.loads(answer)
    if read["unavailable"]:
        error = UnavailableError(read["message"], metadata={"model": name})
        error.reason = read["reason"]
        raise error
    return Registrable(
        check=ModelCheck.FromString(b64decode(read["check"])) if read["check"] is not None else None,
        content=b64decode(read["content"]),
        reason=read["reason"],
        message=read["message"],
    )


_COMMAND = [sys.executable, "-m", _MODULE]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def _request(settings: RoomSettings, **asked: Any) -> bytes:
    shared = settings.model_dump(mode="json", include=set(RoomSettings.model_fields))
    return json.dumps({"settings": shared, **asked}).encode()


def _late(name: str, seconds: float) -> UnavailableError:
    message = f"the check of {name} took over {seconds:g} seconds; try again when the machine is less busy"
    return UnavailableError(message, reason="CHECK_ENDED", metadata={"model": name})


def _ended(name: str) -> UnavailableError:
    message = f"the check of {name} ended without an answer; the backend's log has the reason"
    return UnavailableError(message, reason="CHECK_ENDED", metadata={"model": name})


def main() -> None:
    """Read a request from stdin, and write the answer to stdout."""
    asked = json.load(sys.stdin)
    # What a library prints must not end up in the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    settings = RoomSettings.model_validate(asked["settings"])
    answers.buffer.write(_registrable(settings, asked) if "entry" in asked else _checked(settings, asked["name"]))


def _checked(settings: RoomSettings, name: str) -> bytes:
    from unerase_backend.catalogue.opening import open_catalogue

    catalogue = open_catalogue(settings, ArtifactStore(settings.artifacts))
    # Imports torch, which takes seconds that a wrong file should not cost.
    from unerase_backend.checking.models import check_model

    return check_model(catalogue, name).SerializeToString()


def _registrable(settings: RoomSettings, asked: Mapping[str, Any]) -> bytes:
    from unerase_backend.checking.registration import examine

    answer: dict[str, Any] = {"check": None, "content": "", "reason": "", "message": "", "unavailable": False}
    try:
        check, definition = examine(settings, asked["name"], asked["entry"])
        answer["check"] = b64encode(check.SerializeToString()).decode()
        if definition is not None:
            answer["content"] = b64encode(definition.to_bytes()).decode()
        else:
            first = check.problems[0]
            answer["reason"], answer["message"] = first.reason, first.description
    except UneraseError as error:
        answer["reason"], answer["message"] = error.reason, error.message
        answer["unavailable"] = isinstance(error, UnavailableError)
    return json.dumps(answer).encode()


if __name__ == "__main__":
    main()
