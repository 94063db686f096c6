"""Folders of the model hub, at a pinned commit: configurations and safetensors, never code and never pickles."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.model_files import (
    SCHEDULER,
    SUFFIX,
    loaded_files,
    part_weights,
    pipeline_parts,
    stem_of,
)
from unerase_backend.runtime.errors import UnavailableError

_TYPES = ("safetensors", "json", "txt")
# Variants of the same weights, which would only be hashed and never loaded.
_VARIANTS = ["*.fp16*", "*.non_ema*", "*.bf16*"]


def pipeline_folder(hub_id: str, revision: str) -> Path:
    """Return the local folder of a pipeline, fetched once.

    Of each part's weights one set is fetched, that which would be loaded (`model_files`).

    Raises:
        UnavailableError: it is not in the local cache and cannot be fetched from the hub.
    """
    if (cached := cached_pipeline(hub_id, revision)) is not None:
        return cached
    parts = pipeline_parts(_snapshot(hub_id, revision, ["model_index.json"], []))
    weighing = [part for part, known in parts.items() if known.weighs]
    texts = [f"{part}/*.{kind}" for part in (*parts, SCHEDULER) for kind in _TYPES[1:]]
    vocabularies = [f"{part}/*.model" for part, known in parts.items() if known.sentencepiece]
    plain = [f"{part}/{stem_of(part)}{ending}" for part in weighing for ending in (SUFFIX, f"-*-of-*{SUFFIX}")]
    folder = _snapshot(hub_id, revision, ["model_index.json", *texts, *vocabularies, *plain], _VARIANTS)
    for variant in ("fp16", "bf16", ""):
        without = [part for part in weighing if part_weights(part, folder / part, None, Findings(hub_id)) is None]
        endings = (f".{variant}*{SUFFIX}", f"{SUFFIX}.index.{variant}.json")
        if not variant:
            endings = (f"*{SUFFIX}", f"{SUFFIX}.index*.json")
        if without:
            names = [f"{part}/{stem_of(part)}{ending}" for part in without for ending in endings]
            folder = _snapshot(hub_id, revision, names, [])
    return folder


def cached_pipeline(hub_id: str, revision: str) -> Path | None:
    """Return the local folder of a pipeline if all that is loaded of it was fetched before; else None."""
    index = try_to_load_from_cache(hub_id, "model_index.json", revision=revision)
    if not isinstance(index, str):
        return None
    folder, findings = Path(index).parent, Findings(hub_id)
    loaded_files(folder, None, findings)
    return None if findings.problems else folder


def fetch_folders(hub_id: str, revision: str, folders: Sequence[str]) -> None:
    """Fetch further folders of a pipeline, weights and configurations, into its local folder.

    A variant of weights is fetched only where there are no others.

    Raises:
        UnavailableError: they cannot be fetched from the hub.
    """
    local = _snapshot(hub_id, revision, [f"{folder}/*.{kind}" for folder in folders for kind in _TYPES], _VARIANTS)
    models = [folder for folder in folders if (local / folder / "config.json").is_file()]
    for ending in (f"*.fp16*{SUFFIX}", f"*.bf16*{SUFFIX}", f"*{SUFFIX}"):
        if without := [folder for folder in models if not any((local / folder).glob(f"*{SUFFIX}"))]:
            indexes = ending.replace(SUFFIX, f"{SUFFIX}.index*.json")
            local = _snapshot(
                hub_id, revision, [f"{folder}/{each}" for folder in without for each in (ending, indexes)], []
            )


def judge_folder(hub_id: str, revision: str, *files: str) -> Path:
    """Return the local folder of a judge, fetched once; `files` are needed beside weights and texts.

    Raises:
        UnavailableError: it is not in the local cache and cannot be fetched from the hub.
    """
    patterns = [*(f"*.{kind}" for kind in _TYPES), *files]
    folder = _snapshot(hub_id, revision, patterns, _VARIANTS)
    # The only weights there are may be a variant.
    known = bool(files) or any(folder.glob(f"*{SUFFIX}"))
    return folder if known else _snapshot(hub_id, revision, patterns, [])


def fetched(hub_id: str, revision: str) -> Path | None:
    """Return the local folder of what was fetched before; None if it was not. The network is not asked."""
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def _snapshot(hub_id: str, revision: str, patterns: list[str], ignored: list[str]) -> Path:
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise UnavailableError(
            f"{hub_id} at {revision} cannot be fetched from the hub", reason="HUB_UNAVAILABLE", retry_after_seconds=60
        ) from None
