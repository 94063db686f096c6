"""The load of a request and of a replica, counted in trajectories.

One request holds anything from one trajectory to several hundred, so that the number of requests says little. A picture
measured under one prompt counts as one trajectory; encoding prompts counts as none.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, MeasureDenoisingRequest


def work_of(request: object) -> int:
    """Return the trajectories of a request to generation."""
    if isinstance(request, GenerateRequest):
        return len(request.trajectories)
    if isinstance(request, MeasureDenoisingRequest):
        return len(request.picture_digests) * len(request.prompts)
    return 0


class Load:
    """The trajectories that a replica has received and not answered: queued, in a batch, or waiting for a judge."""

    def __init__(self) -> None:
        self.trajectories = 0

    @contextmanager
    def of(self, request: object) -> Iterator["_Share"]:
        """Count a request while it runs; `answered` subtracts what has been answered before its end."""
        share = _Share(self, work_of(request))
        try:
            yield share
        finally:
            share.answered(share.remaining)


class _Share:
    def __init__(self, load: Load, trajectories: int) -> None:
        self._load = load
        self.remaining = trajectories
        load.trajectories += trajectories

    def answered(self, trajectories: int = 1) -> None:
        self.remaining -= trajectories
        self._load.trajectories -= trajectories
