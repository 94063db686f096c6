"""The settings of generation's deployment."""

from pydantic import Field

from unerase_backend.diffusion.shapes import BATCH_ROWS, DECODE_BATCH
from unerase_backend.runtime.settings import ReplicatedRoomSettings


class GenerationSettings(ReplicatedRoomSettings):
    """Where generation finds weights and keeps pictures, and how it computes."""

    # Both are part of the numerics profile, because other values give other bits.
    batch_rows: int = Field(default=BATCH_ROWS, ge=2, le=1024, description="rows of every UNet call")
    decode_batch: int = Field(default=DECODE_BATCH, ge=1, le=256, description="pictures in every VAE call")
    # An audit uses three: subject, reference, control.
    models_in_memory: int = Field(default=4, ge=1, description="models kept loaded; others wait until one is idle")
    niceness: int = Field(default=0, ge=0, le=19, description="of the thread that makes pictures, above the process's")
