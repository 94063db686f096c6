"""Flat pictures: a guard that withholds what has hardly any contrast."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, guard


class FlatPicturesParameters(GuardParameters):
    """`contrast`: the least standard deviation of a picture's values, 0 to 127."""

    contrast: Annotated[float, Field(ge=0, le=127)] = 8.0


@guard("flat-pictures")
class FlatPictures(Guard):
    """Withholds pictures with hardly any contrast."""

    Parameters = FlatPicturesParameters

    def refuse(self, picture: NDArray[np.uint8]) -> str:
        """Return why the picture is withheld; empty if it is shown."""
        return "the picture has hardly any contrast" if picture.std() < self.parameters.contrast else ""
