"""The process that reads one foreign file: `python -P -m unerase_backend.importing.worker`, with its job on stdin.

It answers on stdout, as JSON: `{"files": [...], "layout": ..., "notes": [...], "words": {...}}`, or
`{"error": ...}`. The parent (`command.py`) believes none of it: it checks the files itself.
"""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unerase_backend.importing import isolation
from unerase_backend.runtime.errors import ExhaustedError, UneraseError


def main() -> None:
    """Do the job that stands on stdin."""
    # The parent holds signals back while it starts this process, which inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    job = json.load(sys.stdin)
    # A process of one thread only can change its user namespace, so it comes before torch.
    connected = isolation.leave_network()
    isolation.give_up_rights()
    if connected and job["require_isolation"]:
        _answer({"error": f"the file was not read, since it cannot be isolated: {connected}"})
        return
    do = prepared(job)
    folder = Path(job["folder"])
    isolation.limit(job["memory"], job["seconds"], job["written"])
    isolation.forbid(folder)
    _answer({**attempt(do, folder, job), "connected": connected})


def attempt(do: Callable[[Path], dict[str, Any]], folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of what does a job in a folder, or the error."""
    try:
        return do(folder)
    except UneraseError as error:
        return {"error": error.message}
    except MemoryError:
        return {"error": _too_large(job)}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:
        # What a hostile file leads to is not known.
        damaged = "it is damaged, or holds what is not weights"
        return {"error": _too_large(job) if isolation.is_shortage(error) else damaged}


def prepared(job: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    """Import what the job needs while nothing is limited yet, and return what does it in a folder."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from unerase_backend.importing import architecture, choice, weights
    from unerase_backend.importing.registry import importers

    torch.set_num_threads(1)
    registered = importers()
    if job["architecture"]:
        architecture.classes()

    def do(folder: Path) -> dict[str, Any]:
        held, imported, layout = choice.imported(job, registered)
        held.clear()
        for name, tensors in imported.files.items():
            weights.check(tensors, job["written"])
            for key in list(tensors):
                tensors[key] = weights.plain(tensors[key])
            # safetensors keeps several entries of metadata in no fixed order.
            try:
                save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
            except (OSError, SafetensorError) as error:
                raise error if isolation.is_shortage(error) else _unwritten(error) from None
        return {"files": sorted(imported.files), "layout": layout, "notes": imported.notes, "words": imported.words}

    return do


def _unwritten(error: Exception) -> UneraseError:
    # Such as "Error while serializing: I/O error: No space left on device (os error 28)".
    cause = str(error).rpartition("I/O error: ")[2]
    return ExhaustedError(f"what is made of it cannot be written: {cause}", reason="STORAGE_FULL")


def _too_large(job: dict[str, Any]) -> str:
    return f"it needs more than {job['memory'] // 2**20} MiB of memory; --memory allows more"


def _answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
