"""The settings of the attacks' deployment."""

from pydantic import Field

from unerase_backend.diffusion.shapes import ENCODE_BATCH, GRADIENT_ROWS
from unerase_backend.runtime.settings import ReplicatedRoomSettings


class AttackSettings(ReplicatedRoomSettings):
    """The resources of the attacks' deployment.

    A replica optimises one unit at a time, in its own thread.
    """

    # Part of the numerics profile. An attack's parameters say how many rows make a step; larger steps are computed in
    # several calls, so that parameters do not depend on the device.
    gradient_rows: int = Field(
        default=GRADIENT_ROWS, ge=1, le=256, description="most rows of the UNet in one call whose gradients are kept"
    )
    # Part of the profile as well.
    encode_batch: int = Field(default=ENCODE_BATCH, ge=1, le=256, description="pictures in every VAE call of an attack")
    models_kept: int = Field(default=4, ge=1, description="models kept in memory, by most recent use")
    unit_timeout_seconds: float = Field(default=6 * 3600, gt=0, description="time that one unit may take")
