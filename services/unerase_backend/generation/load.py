"""How much work a request is, and how much of it a replica has, counted in trajectories.

One request holds anything from one trajectory to several hundred, so that the number of requests says little. A picture
that is measured under a prompt counts as one trajectory; encoding counts as none.
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
    """The trajectories that a replica was asked for and has not answered: queued, in a batch, waiting for a judge."""

    def __init__(self) -> None:
        self.trajectories = 0

    @contextmanager
    def of(self, request: object) -> Iterator["_Share"]:
        """Count a request for as long as it lasts; `answered` takes off what has been answered before its end."""
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
