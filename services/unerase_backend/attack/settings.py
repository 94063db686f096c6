"""The settings of the attacks' deployment."""

from pydantic import Field

from unerase_backend.runtime.settings import RoomSettings


class AttackSettings(RoomSettings):
    """Where the attacks find models and pictures, and how much they may use."""

    models_kept: int = Field(default=4, ge=1, description="models kept in memory, by most recent use")
    unit_timeout_seconds: float = Field(default=6 * 3600, gt=0, description="time that one unit may take")
    replicas: int = Field(default=1, ge=1, description="replicas of the deployment, each with one thread of its own")
