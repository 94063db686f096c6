"""What steps have in common, against the schedule that it comes from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.schedule import estimate_coefficients, step_coefficients
from unerase_backend.diffusion.walk import FACTORS_KEPT, Walk
from unerase_backend.runtime.errors import InvalidRequestError


@given(steps=st.integers(1, 60), eta=st.floats(0, 2), scale=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_factors_are_those_of_the_schedule(model: DiffusionModel, steps: int, eta: float, scale: float) -> None:
    walk, (level, reached) = Walk.of(model.schedule, steps), model.schedule.levels(steps)
    anew, scales = (torch.full((steps,), value, dtype=torch.float64) for value in (eta, scale))
    expected = step_coefficients(level, reached, anew, scales, model.prediction).float()
    for _ in range(2):
        assert torch.equal(walk.coefficients(eta, scale), expected)
    for step in range(steps):
        assert torch.equal(walk.estimate(step), estimate_coefficients(level, model.prediction)[step].float())


def test_kinds_of_noise_do_not_pile_up(model: DiffusionModel) -> None:
    walk = Walk.of(model.schedule, 3)
    first = walk.coefficients(0.0, 1.0)
    for number in range(2 * FACTORS_KEPT):
        walk.coefficients(1.0, 1.0 + number)
    assert len(walk._factors) <= FACTORS_KEPT
    assert torch.equal(walk.coefficients(0.0, 1.0), first)


def test_more_steps_than_the_schedule_has_are_refused(model: DiffusionModel) -> None:
    with pytest.raises(InvalidRequestError):
        Walk.of(model.schedule, 1001)
