"""The settings of the judges' deployment."""

from pydantic import Field

from unerase_backend.runtime.settings import ReplicatedRoomSettings


class ClassificationSettings(ReplicatedRoomSettings):
    """Where the judges find pictures and weights, and how they compute."""

    # It affects every bit of a score, because every call of a judge is padded to it.
    batch_size: int = Field(default=32, ge=1, le=512, description="pictures in one call of a judge")
