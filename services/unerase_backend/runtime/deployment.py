"""What the rooms have in common as Ray Serve applications."""

from typing import Any

from ray import serve

from unerase_backend.runtime.settings import ReplicatedRoomSettings, RoomSettings
from unerase_backend.runtime.telemetry import configure_telemetry

HEALTH_CHECK_PERIOD_SECONDS = 3
HEALTH_CHECK_TIMEOUT_SECONDS = 10
"""Serve replaces a replica that does not answer for this long three times.

A caller can also delay others for this long: at the end of a stream Ray makes the whole replica wait for the caller's
receipt, which a stopped process does not send.
"""


def application(room: type, settings: RoomSettings, **options: Any) -> serve.Application:
    """Return the application of a room, whose only deployment has the room's name; `options` are Serve's own."""
    if isinstance(settings, ReplicatedRoomSettings):
        options["num_replicas"] = settings.replicas
    deployment = serve.deployment(
        room,
        name=room.__name__.lower(),
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=HEALTH_CHECK_PERIOD_SECONDS,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_SECONDS,
        **options,
    )
    return deployment.bind(settings)


def begin_computing(room: str, settings: RoomSettings) -> None:
    """Prepare the process of a replica that computes: its logs, its traces, its threads, and no progress bars."""
    # Imported only in the replica, so that the process that deploys it stays light.
    import torch
    import transformers

    torch.set_num_threads(settings.torch_threads)
    configure_telemetry(room, settings)
    transformers.logging.disable_progress_bar()
