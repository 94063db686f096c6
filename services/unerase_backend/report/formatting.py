"""How the page writes numbers: figures, differences, intervals and p-values."""

import math

from unerase.v1.verdicts_pb2 import Estimate, Interval


def number(value: float) -> str:
    """Return a figure with two decimals and a true minus sign; "none" if it is not finite."""
    return _signed(f"{value:z.2f}") if math.isfinite(value) else "none"


def points(value: float) -> str:
    """Return a difference of two rates in percentage points, as in "+71"; "none" if it is not finite."""
    return f"+{_percent(value)}" if value >= 0.005 else _percent(value)


def span(interval: Interval) -> str:
    """Return the ends of an interval of rates in per cent, as in "21 to 57"."""
    return f"{_percent(interval.lower)} to {_percent(interval.upper)}"


def p_value(p: float) -> str:
    """Return a p-value with two digits and a relation, as in "= 0.012"; small values are a bound."""
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def estimate(figure: Estimate) -> str:
    """Return a figure with its interval."""
    return f"{number(figure.value)} ({number(figure.interval.lower)} to {number(figure.interval.upper)})"


def _percent(value: float) -> str:
    return _signed(f"{100 * value:z.0f}") if math.isfinite(value) else "none"


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
