"""What the rooms have in common as Ray Serve applications."""

import os
import threading
from collections.abc import Callable
from typing import Any

from ray import serve

from unerase_backend.runtime.allocation import keep_freed_memory
from unerase_backend.runtime.settings import ReplicatedRoomSettings, RoomSettings
from unerase_backend.runtime.telemetry import configure_telemetry

REPLICA_CPUS = 0.1
"""The share of a CPU that Ray reserves for a replica: what a replica takes is for its settings to say, not for Ray."""
HEALTH_CHECK_PERIOD_SECONDS = 3
HEALTH_CHECK_TIMEOUT_SECONDS = 10
"""Serve replaces a replica that does not answer for this long three times.

A caller can also delay others for this long: at the end of a stream Ray makes the whole replica wait for the caller's
receipt, which a stopped process does not send.
"""

_PREPARE_SECONDS = 6.0


def application(room: type, settings: RoomSettings, **options: Any) -> serve.Application:
    """Return the application of a room, whose only deployment has the room's name; `options` are Serve's own."""
    resources: dict[str, Any] = {"num_cpus": REPLICA_CPUS}
    if isinstance(settings, ReplicatedRoomSettings):
        options["num_replicas"] = settings.replicas
        if settings.gpu_share:
            resources["num_gpus"] = settings.gpu_share
    deployment = serve.deployment(
        room,
        name=room.__name__.lower(),
        ray_actor_options=resources,
        health_check_period_s=HEALTH_CHECK_PERIOD_SECONDS,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_SECONDS,
        **options,
    )
    return deployment.bind(settings)


def begin_computing(room: str, settings: RoomSettings) -> None:
    """Prepare the process of a replica that computes: its memory, threads, logs and traces, and no progress bars."""
    # Imported only in the replica, so that the process that deploys it stays light.
    import torch
    from huggingface_hub.utils.tqdm import disable_progress_bars

    keep_freed_memory()
    torch.set_num_threads(settings.torch_threads)
    if settings.device == "cuda":
        prepare_gpu(settings.gpu_share if isinstance(settings, ReplicatedRoomSettings) else 0.0)
    configure_telemetry(room, settings)
    # Before transformers is imported, which then shows none either.
    disable_progress_bars()


def prepare_later(prepare: Callable[[], object]) -> None:
    """Call `prepare` once in a thread, when all rooms have had the time to start, which it would slow down."""
    timer = threading.Timer(_PREPARE_SECONDS, prepare)
    timer.daemon = True
    timer.start()


def prepare_gpu(share: float) -> None:
    """Make a GPU compute the same bits every time, and bound this process to its share of the memory.

    Without the bound a room could take the memory of another, which would then fail in its place.
    """
    import torch

    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Warned of and not refused: an operation without a deterministic form must not end an audit.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Its gradients differ between runs; flash attention's do not in deterministic mode.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if 0 < share < 1:
        torch.cuda.set_per_process_memory_fraction(share)
