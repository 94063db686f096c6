"""What pydantic finds is told in plain words, without the kind of exception before them."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError, field_validator, model_validator

import unerase_backend
from unerase_backend.runtime import validation


class Range(BaseModel):
    """A model with problems of three kinds: pydantic's own, a field's and the whole's."""

    low: int
    high: int

    @field_validator("low")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must not be negative")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"low": -1, "high": 2}, ["low: must not be negative"]),
        ({"low": 3, "high": 2}, ["the range: low is above high"]),
        ({"low": -1}, ["low: must not be negative", "high: Field required"]),
    ],
)
def test_each_problem_is_told_with_its_key(given: dict[str, int], told: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Range(**given)
    assert validation.problems_of(caught.value, "the range") == told


def test_nothing_else_tells_what_pydantic_found() -> None:
    """Whoever reads pydantic's own text shows its prefix to a user."""
    folder = Path(unerase_backend.__file__).parent
    own = [path for path in folder.rglob("*.py") if any(each in path.read_text() for each in ("['msg']", '["msg"]'))]
    assert own == [Path(validation.__file__)]
