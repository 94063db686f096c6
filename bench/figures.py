"""The figures that benches measure, with unit, direction and target from bench.json, and their comparison with it."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

TARGETS = Path(__file__).with_name("bench.json")


@cache
def targets() -> Mapping[str, Mapping[str, Any]]:
    """Return what bench.json says of each figure, by name: `unit`, `better` (higher or lower) and `target` or None."""
    content: Mapping[str, Mapping[str, Any]] = json.loads(TARGETS.read_text(encoding="utf-8"))
    return content


def figure(name: str, value: float, **beside: Any) -> dict[str, Any]:
    """Return a measured figure as build/bench.json holds it; `beside` is what explains it, such as its spread.

    Raises:
        KeyError: bench.json does not have the figure.
    """
    return {"name": name, "value": value, **targets()[name], **beside}


def held(measured: Mapping[str, Any]) -> bool | None:
    """Return whether a figure holds its target; None if it has no target."""
    value, target = measured["value"], measured["target"]
    if target is None:
        return None
    return bool(value >= target if measured["better"] == "higher" else value <= target)


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of figures, values, targets, and whether each target is held."""
    rows = [("figure", "value", "target", "held")]
    for each in figures:
        sign = ">=" if each["better"] == "higher" else "<="
        target = "" if each["target"] is None else f"{sign} {each['target']:,}"
        said = {True: "yes", False: "NO", None: ""}[held(each)]
        rows.append((each["name"], f"{each['value']:,} {each['unit']}", target, said))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
