"""The settings of the judges' deployment."""

from pydantic import Field

from unerase_backend.runtime.settings import ReplicatedRoomSettings


class ClassificationSettings(ReplicatedRoomSettings):
    """Where the judges find pictures and weights, and how they compute."""

    @property
    def precision(self) -> str:
        """The judges' dtype: float32 unless another one is asked for, because they decide and cost little."""
        return "float32" if self.dtype == "auto" else self.dtype

    # It affects every bit of a score, because every call of a judge is padded to it.
    batch_size: int = Field(default=32, ge=1, le=512, description="pictures in one call of a judge")
