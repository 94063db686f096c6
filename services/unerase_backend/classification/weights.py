"""The files of a transformers model's weights, found and opened without torch."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.model_files import WeightFiles, judge_weights
from unerase_backend.runtime.errors import UnsafeModelError


def checked_weights(folder: Path, root: Path | None = None) -> WeightFiles:
    """Return the files that hold the weights of a judge, after reading their headers.

    `root` is the folder that no link may lead out of; None if that is checked elsewhere.

    Raises:
        UnsafeModelError: there are none in safetensors, a shard is missing, or a file is damaged; the file is named.
    """
    findings = Findings(folder.name)
    weights = judge_weights(folder, root, findings)
    if weights is None:
        first = findings.problems[0]
        raise UnsafeModelError(first.text, reason=first.reason)
    for path in weights.files:
        try:
            # Opening reads the header, and compares it with the length of the file.
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            why = str(error).partition("\n")[0].replace(str(path), path.name)
            raise UnsafeModelError(f"{path.name} cannot be read: {why}", reason="WEIGHTS_UNREADABLE") from error
    return weights
