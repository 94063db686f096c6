"""A grid of draws: every combination, in order, and no more than one request holds."""

import pytest

from unerase_backend.evaluation.grids import CASES_PER_UNIT, MAX_DRAWS, grid_of
from unerase_backend.generation.validation import MAX_TRAJECTORIES
from unerase_backend.runtime.errors import InvalidRequestError


def test_a_grid_is_every_combination() -> None:
    assert grid_of({"etas": [1.0, 2.0], "scales": [3.0, 4.0]}, "etas", "scales", named="etas") == [
        (1.0, 3.0),
        (1.0, 4.0),
        (2.0, 3.0),
        (2.0, 4.0),
    ]


def test_two_arms_of_a_unit_fit_into_one_request() -> None:
    assert 2 * CASES_PER_UNIT * MAX_DRAWS <= MAX_TRAJECTORIES


@pytest.mark.parametrize(("named", "beside"), [("etas", "scales"), ("scales", "etas")])
def test_a_grid_that_is_too_large_names_what_makes_it_so(named: str, beside: str) -> None:
    most = {"etas": [1.0] * 16, "scales": [1.0] * 16}
    assert len(grid_of(most, "etas", "scales", named=named)) == MAX_DRAWS
    with pytest.raises(InvalidRequestError) as refused:
        grid_of({**most, "scales": [1.0] * 17}, "etas", "scales", named=named)
    (violation,) = refused.value.violations
    assert violation.field == f"unit.parameters.{named}"
    assert violation.description == f"make 272 draws a case with {beside}; 256 is the most"
