"""What a report records of each judge. Nothing here imports torch: the coordinator calls it."""

import json
from collections.abc import Mapping

from unerase.v1.audits_pb2 import JudgeRecord
from unerase_backend.catalogue import Catalogue, JudgeEntry, judge_files

MULTI_LABEL_THRESHOLD = 0.5
"""A classifier of several labels detects those over this."""


def judge_record(name: str, catalogue: Catalogue, providers: Mapping[str, str]) -> JudgeRecord:
    """Return what a judge of the catalogue is; `providers` are as in DescribeClassificationResponse.kinds.

    Raises:
        NotFoundError: there is no such judge.
        UnsafeModelError: its files are not what they must be.
        UnavailableError: it cannot be fetched from the hub.
    """
    entry = catalogue.judge(name)
    record = JudgeRecord(
        name=name,
        kind=entry.kind,
        provider=providers.get(entry.kind, ""),
        digest=catalogue.judge_digest(name),
        weights=catalogue.judge_weight_files(name),
        threshold=threshold_of(entry),
    )
    if entry.options:
        record.options.update(judge_files.plain(entry.options))
    return record


def threshold_of(entry: JudgeEntry) -> float | None:
    """Return the score from which a judge detects a concept; None if it detects by its first choice, or is not known.

    A number under `threshold` in the options counts for any kind.
    """
    given = entry.options.get("threshold")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    if entry.kind != "classifier":
        return None
    try:
        config = json.loads((entry.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    several = isinstance(config, dict) and config.get("problem_type") == "multi_label_classification"
    return MULTI_LABEL_THRESHOLD if several else None
