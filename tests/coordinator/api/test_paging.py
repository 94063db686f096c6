import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase.v1.models_pb2 import Model
from unerase_backend.coordinator.api import paging
from unerase_backend.coordinator.api.paging import Page, cursor_of, page_size, token_of
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


def test_a_page_ends_at_its_size_or_at_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "MAX_PAGE_BYTES", 100)

    def filled(size: int, lengths: list[int]) -> tuple[list[int], str]:
        page = Page("models", size)
        for index, length in enumerate(lengths):
            if not page.add(Model(name="x" * length), str(index)):
                break
        return [len(model.name) for model in page.items], cursor_of(page.token, "models", 1)[0] if page.token else ""

    assert filled(3, [10, 10, 10]) == ([10, 10, 10], "")
    assert filled(2, [10, 10, 10]) == ([10, 10], "1")
    assert filled(9, [40, 40, 40]) == ([40, 40], "1")
    # One that is too large for any page has one of its own.
    assert filled(9, [500, 10]) == ([500], "0")
    assert filled(9, [10, 500]) == ([10], "0")
