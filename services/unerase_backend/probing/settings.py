"""The settings of the probes' deployment."""

from pydantic import Field

from unerase_backend.runtime.settings import RoomSettings


class ProbingSettings(RoomSettings):
    """How many processes run probes; they compute nothing themselves."""

    replicas: int = Field(default=1, ge=1, description="replicas of the deployment")
