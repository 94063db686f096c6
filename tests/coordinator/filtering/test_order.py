"""Orders of lists."""

import pytest

from unerase_backend.coordinator.filtering import Order, read_order
from unerase_backend.runtime.errors import InvalidRequestError

NEWEST = Order("create_time", descending=True)
FIELDS = ("create_time", "end_time")


def test_an_order_is_a_field_alone_or_with_desc() -> None:
    assert read_order("", FIELDS, NEWEST) == NEWEST
    assert read_order(" end_time ", FIELDS, NEWEST) == Order("end_time")
    assert read_order("create_time  desc", FIELDS, Order("end_time")) == NEWEST


@pytest.mark.parametrize("text", ["state", "create_time asc", "create_time, end_time", "desc", "create_time desc desc"])
def test_another_order_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_order(text, FIELDS, NEWEST)
    assert refused.value.reason == "ORDER_INVALID"
    assert 'create_time or end_time, alone or with "desc"' in refused.value.message
