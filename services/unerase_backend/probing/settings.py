"""The settings of the probes' deployment."""

from unerase_backend.runtime.settings import ReplicatedRoomSettings


class ProbingSettings(ReplicatedRoomSettings):
    """The number of processes that run probes; they compute nothing themselves."""
