"""Folders of the model hub, at a pinned commit: configurations and safetensors, never code and never pickles."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from unerase_backend.runtime.errors import UnavailableError

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_TYPES = ("safetensors", "json", "txt")
# Variants of the same weights, which would only be hashed and never loaded.
_VARIANTS = ["*.fp16.*", "*.non_ema.*", "*.bf16.*"]


def pipeline_folder(hub_id: str, revision: str) -> Path:
    """Return the local folder of a StableDiffusionPipeline, fetched once.

    Raises:
        UnavailableError: it is not in the local cache and cannot be fetched from the hub.
    """
    patterns = [f"{part}/*.{kind}" for part in _PARTS for kind in _TYPES]
    return _snapshot(hub_id, revision, ["model_index.json", *patterns])


def judge_folder(hub_id: str, revision: str) -> Path:
    """Return the local folder of a judge, fetched once.

    Raises:
        UnavailableError: it is not in the local cache and cannot be fetched from the hub.
    """
    return _snapshot(hub_id, revision, [f"*.{kind}" for kind in _TYPES])


def fetched(hub_id: str, revision: str) -> Path | None:
    """Return the local folder of what was fetched before; None if it was not. The network is not asked."""
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def _snapshot(hub_id: str, revision: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=_VARIANTS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise UnavailableError(
            f"{hub_id} at {revision} cannot be fetched from the hub", reason="HUB_UNAVAILABLE", retry_after_seconds=60
        ) from None
