"""Checks one model in a process of its own, so that a server needs neither torch nor its memory for it.

The process gets the catalogue files and the model's name as JSON on stdin, and writes a `ModelCheck` to stdout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from unerase.v1.models_pb2 import ModelCheck
from unerase_backend.catalogue import Catalogue
from unerase_backend.runtime.errors import UnavailableError

_SECONDS = 120
_MODULE = "unerase_backend.checking.process"


def check_in_process(catalogues: Sequence[str], name: str) -> ModelCheck:
    """Return what `checking.models.check_model` finds of the model `name` of the catalogue of these files.

    Raises:
        UnavailableError: the process did not end in time, or ended without an answer.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    try:
        # The command is this interpreter and this module.
        ended = subprocess.run(  # noqa: S603
            [sys.executable, "-m", _MODULE],
            input=json.dumps({"catalogues": list(catalogues), "name": name}).encode(),
            stdout=subprocess.PIPE,
            check=False,
            timeout=_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        message = f"the check of {name} took over {_SECONDS} seconds; try again when the machine is less busy"
        raise UnavailableError(message, reason="CHECK_ENDED", metadata={"model": name}) from None
    if ended.returncode != 0:
        message = f"the check of {name} ended without an answer; the backend's log has the reason"
        raise UnavailableError(message, reason="CHECK_ENDED", metadata={"model": name})
    return ModelCheck.FromString(ended.stdout)


def main() -> None:
    """Read a request from stdin, and write the answer to stdout."""
    asked = json.load(sys.stdin)
    catalogue = Catalogue.load(asked["catalogues"])
    from unerase_backend.checking.models import check_model

    # What a library prints must not end up in the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    found = check_model(catalogue, asked["name"])
    answers.buffer.write(found.SerializeToString())


if __name__ == "__main__":
    main()
