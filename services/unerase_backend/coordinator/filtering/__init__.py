"""The filters and orders of lists: a subset of AIP-160 and AIP-132. `storage/filters.py` makes SQL of them."""

from unerase_backend.coordinator.filtering.fields import Field, Kind, Values
from unerase_backend.coordinator.filtering.lists import (
    AUDIT_FIELDS,
    CAMPAIGN_FIELDS,
    CELL_FIELDS,
    MODEL_FIELDS,
    audit_values,
    model_values,
)
from unerase_backend.coordinator.filtering.order import Order, read_order
from unerase_backend.coordinator.filtering.predicate import EVERYTHING, Condition, Test, holds, read_filter

__all__ = [
    "AUDIT_FIELDS",
    "CAMPAIGN_FIELDS",
    "CELL_FIELDS",
    "EVERYTHING",
    "MODEL_FIELDS",
    "Condition",
    "Field",
    "Kind",
    "Order",
    "Test",
    "Values",
    "audit_values",
    "holds",
    "model_values",
    "read_filter",
    "read_order",
]
