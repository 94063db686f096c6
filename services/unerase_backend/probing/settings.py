"""The settings of the probes' deployment."""

from unerase_backend.runtime.settings import ReplicatedRoomSettings


class ProbingSettings(ReplicatedRoomSettings):
    """How many processes run probes; they compute nothing themselves."""
