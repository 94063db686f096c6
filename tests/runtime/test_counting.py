"""Numbers with their nouns, in the client's messages and in the backend's."""

from collections.abc import Callable

import pytest

from unerase._counting import count_of
from unerase_backend.runtime.counting import counted


@pytest.mark.parametrize("count", [counted, count_of])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, "cell"), "0 cells"),
        ((1, "cell"), "1 cell"),
        ((2, "cell"), "2 cells"),
        ((20_000, "further case"), "20,000 further cases"),
        ((1, "near miss", "near misses"), "1 near miss"),
        ((3, "near miss", "near misses"), "3 near misses"),
    ],
)
def test_a_noun_has_the_number_of_what_it_counts(
    count: Callable[..., str], arguments: tuple[int, str], text: str
) -> None:
    assert count(*arguments) == text
