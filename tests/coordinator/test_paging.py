import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.coordinator.paging import cursor_of, page_size, token_of
from unerase_backend.runtime.errors import InvalidRequestError


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_a_token_gives_its_cursor_back(cursor: list[str]) -> None:
    assert cursor_of(token_of("models", *cursor), "models", len(cursor)) == cursor


@given(st.text(max_size=2000))
def test_no_other_token_is_taken(token: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        cursor_of(token, "models", 1)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


def test_a_token_of_another_list_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        cursor_of(token_of("audits", "a"), "models", 1)


def test_page_sizes() -> None:
    assert page_size(0) == 100
    assert page_size(1000) == 1000
    with pytest.raises(InvalidRequestError):
        page_size(1001)
