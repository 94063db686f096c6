"""The settings of the attacks' deployment."""

from pydantic import Field

from unerase_backend.runtime.settings import ReplicatedRoomSettings


class AttackSettings(ReplicatedRoomSettings):
    """The resources of the attacks' deployment.

    A replica optimises one unit at a time, in its own thread.
    """

    models_kept: int = Field(default=4, ge=1, description="models kept in memory, by most recent use")
    unit_timeout_seconds: float = Field(default=6 * 3600, gt=0, description="time that one unit may take")
