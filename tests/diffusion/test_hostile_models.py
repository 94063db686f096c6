"""Models that mean harm, or are broken in ways that could do some: none loads, and each is told from the others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.fuzzing import leaks
from support.hostile_models import HOSTILE, TRIPPED
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_check import check_model
from unerase_backend.runtime.errors import UneraseError

Load = Callable[..., DiffusionModel]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_model_loads(tiny: Path, load_tiny: Load, name: str) -> None:
    spoil, reason = HOSTILE[name]
    replaced = spoil(tiny)
    TRIPPED.clear()
    with pytest.raises(UneraseError) as refused:
        load_tiny(**replaced)
    assert refused.value.reason == reason, refused.value.message
    # A check without loading finds the same, but for the values of weights.
    if reason not in ("INVALID_REQUEST", "WEIGHTS_NOT_FINITE"):
        check = check_model(Catalogue.load(embedded=tiny / "catalogue.yaml"), "changed")
        assert check.problems[0].reason == reason
        assert str(check.error) == refused.value.message
    assert not TRIPPED
    # What is told holds no path of the machine's.
    assert str(tiny.parent) not in refused.value.message
    assert not leaks(refused.value.message)


def test_there_are_more_than_twenty() -> None:
    assert len(HOSTILE) >= 30
