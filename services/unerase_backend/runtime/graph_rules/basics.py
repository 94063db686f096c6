"""How rules are gathered, and what they refuse."""

from collections.abc import Callable
from typing import Any

from unerase_backend.runtime.graph_writer import Rule, UnknownOperationError

LAST = 2**63 - 1
"""An end that no axis has."""


def writes(rules: dict[Any, Rule], *operations: Any) -> Callable[[Rule], Rule]:
    """Return a decorator that adds a rule to others, for some operations."""

    def add(rule: Rule) -> Rule:
        rules.update(dict.fromkeys(operations, rule))
        return rule

    return add


def need(condition: bool, what: str) -> None:
    """Raise `UnknownOperationError` unless a condition holds, which no rule writes otherwise."""
    if not condition:
        raise UnknownOperationError(f"no rule writes {what}")
