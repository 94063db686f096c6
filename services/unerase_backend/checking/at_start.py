"""What `unerase serve` checks before it starts anything. It imports neither torch nor Ray, so that it takes seconds."""

from collections.abc import Sequence

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.file_findings import problems
from unerase_backend.classification.judge_check import judge_findings
from unerase_backend.runtime.errors import InvalidRequestError


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
