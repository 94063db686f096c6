"""Keys of a catalogue: which characters they may have, and what is offered in their place."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.catalogue.names import MAX_LENGTH, check_name


@pytest.mark.parametrize("name", ["tench", "sd/1.4", "golf_ball", "Golf-Ball", "0"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("written", "offered"),
    [("Vincent van Gogh", "Vincent-van-Gogh"), ("Café Terrace", "Cafe-Terrace"), ("_tench", "tench"), ("a\n", "a")],
)
def test_another_key_is_refused_with_one_that_would_do(written: str, offered: str) -> None:
    with pytest.raises(ValueError, match=r"letters A to Z and a to z, digits, .* write ") as refused:
        check_name(written)
    assert repr(offered) in str(refused.value)


def test_without_a_letter_to_keep_nothing_is_offered() -> None:
    with pytest.raises(ValueError, match="choose another one"):
        check_name("砂時計")


def test_a_long_name_is_refused() -> None:
    assert check_name("a" * MAX_LENGTH)
    with pytest.raises(ValueError, match="at most 100 characters, not 101"):
        check_name("a" * (MAX_LENGTH + 1))


@given(st.text(max_size=MAX_LENGTH))
def test_what_is_offered_is_itself_a_name(text: str) -> None:
    try:
        check_name(text)
    except ValueError as error:
        if offered := re.search(r"write '(.*)'$", str(error)):
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", offered[1])
