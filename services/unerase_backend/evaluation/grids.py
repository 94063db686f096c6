"""Draws of a case at every combination of two parameters; a whole unit goes to the sampler as one request."""

from itertools import product

from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

CASES_PER_UNIT = 8
MAX_DRAWS = 256
"""The most draws of a case in one arm. Two arms of this size still fit into one request."""


def grid_of(parameters: Parameters, rows: str, columns: str, *, named: str) -> list[tuple[float, float]]:
    """Return every combination of the values of two parameters.

    Raises:
        InvalidRequestError: there are more than `MAX_DRAWS`; the violation names the parameter `named`.
    """
    grid = list(product(parameters[rows], parameters[columns]))
    if len(grid) > MAX_DRAWS:
        beside = columns if named == rows else rows
        description = f"make {len(grid)} draws a case with {beside}; {MAX_DRAWS} is the most"
        raise InvalidRequestError.of(FieldViolation(f"unit.parameters.{named}", description))
    return grid
