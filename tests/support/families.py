"""A family of models that lacks something, as data alone: the testbed's models, planned as if they were of it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from unerase_backend.catalogue import model_families
from unerase_backend.catalogue.model_families import FAMILIES, STABLE_DIFFUSION, ModelFamily, ToldBy

(FLUX_DEV,) = (family for family in FAMILIES if family.name == "flux-dev")
AS_FLUX = replace(FLUX_DEV, classes=STABLE_DIFFUSION.classes, told_by=None)
"""What FLUX.1 dev can do, for every pipeline of Stable Diffusion."""


AS_FLUX_BY_KEY = replace(AS_FLUX, told_by=ToldBy("unet", "as_flux", value=True))
"""The same for pipelines alone whose UNet's configuration has this key."""


def register(monkeypatch: pytest.MonkeyPatch, *families: ModelFamily) -> Sequence[ModelFamily]:
    """Put families before all others, so that they are tried first; catalogues that are loaded later know them."""
    monkeypatch.setattr(model_families, "FAMILIES", (*families, *FAMILIES))
    return families
