"""What the rooms have in common as Ray Serve applications."""

from typing import Any

from ray import serve

from unerase_backend.runtime.observed import observe
from unerase_backend.runtime.settings import ReplicatedRoomSettings, RoomSettings

HEALTH_CHECK_PERIOD_SECONDS = 3
HEALTH_CHECK_TIMEOUT_SECONDS = 10
"""Serve replaces a replica that three times does not answer for so long.

It is also how long a caller can hold others up: at the end of a stream Ray lets the whole replica wait for the caller's
receipt, which does not come from a process that is stopped.
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
    # Imported by the replica alone: what only deploys it stays light.
    import torch
    import transformers

    torch.set_num_threads(settings.torch_threads)
    observe(room, settings)
    transformers.logging.disable_progress_bar()
