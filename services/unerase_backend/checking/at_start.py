"""What `unerase serve` checks before it starts anything.

It imports neither torch nor Ray, so that it takes seconds; torch alone where a guard names a module of the UNet.
"""

import time
from collections.abc import Iterator, Sequence

from unerase_backend.catalogue import Catalogue, guard_files
from unerase_backend.catalogue.file_findings import problems
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.classification.judge_check import judge_findings
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import InvalidRequestError, UneraseError

_SECONDS = 5.0


def check_catalogues(paths: Sequence[str]) -> Catalogue:
    """Return the catalogue of the embedded file and the files at `paths`, after checking its judges and concepts.

    Raises:
        ValueError: something is wrong; a line for each violation, with its file, key and reason.
    """
    try:
        catalogue = Catalogue.load(paths)
    except InvalidRequestError as error:
        raise ValueError("\n".join(f"{each.field}: {each.description}" for each in error.violations)) from None
    if found := problems(judge_findings(catalogue)):
        raise ValueError("\n".join(map(str, found)))
    return catalogue


def unusable_models(catalogue: Catalogue, within_seconds: float = _SECONDS) -> Iterator[str]:
    """Yield a warning for each model that cannot be used, by its configurations and the headers of its files.

    Models that there is no time for are counted in a last warning. Nothing is fetched from the hub.
    """
    end = time.monotonic() + within_seconds
    names, shared = list(catalogue.models), SharedFindings()
    for index, name in enumerate(names):
        if time.monotonic() >= end:
            todo = "`unerase check` with the same catalogue looks at all of them"
            left = len(names) - index
            missed = f"{left} of {counted(len(names), 'model')} {'was' if left == 1 else 'were'} not looked at"
            yield f"warning: {missed} for want of time; {todo}"
            return
        if reasons := _why_unusable(catalogue, name, shared):
            yield f"warning: model {name!r} ({catalogue.place('models', name)}) cannot be used: {reasons}"


def _why_unusable(catalogue: Catalogue, name: str, shared: SharedFindings) -> str:
    try:
        found = check_model(catalogue, name, shared=shared)
        if not found.problems and guard_files.needs_unet(catalogue.guards(name)):
            from unerase_backend.diffusion import model_check

            found = model_check.check_model(catalogue, name, shared=shared)
        return found.reasons
    except UneraseError as error:
        return error.message
    except OSError as error:
        return f"its files cannot be read: {error.strerror}"
