"""What is wrong with a scheduler configuration: a key, its value, and why it cannot be followed. Needs no torch."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SPACINGS = ("leading", "trailing", "linspace")
"""The ways in which schedulers space the timesteps that are visited."""
FILE = "scheduler_config.json"
MAX_TRAINING_TIMESTEPS = 100_000


@dataclass(frozen=True)
class ScheduleProblem:
    """A key of a scheduler configuration that cannot be followed, its value, and what is wrong with it."""

    key: str
    value: Any
    problem: str

    def __str__(self) -> str:
        """Return the problem as one line, beginning with file, key and value."""
        return f"{FILE}: {self.key} {self.problem}"


Told = Callable[[str, str], ScheduleProblem]
"""Makes the problem of a key from what is wrong with its value."""


def telling(config: Mapping[str, Any]) -> Told:
    """Return what makes the problems of a configuration."""

    def problem(key: str, text: str) -> ScheduleProblem:
        return ScheduleProblem(key, config.get(key), f"{shown(config.get(key))} {text}")

    return problem


def switch_problems(config: Mapping[str, Any], keys: tuple[str, ...], problem: Told) -> Iterator[ScheduleProblem]:
    """Yield the keys that are neither true nor false, nor absent."""
    for key in keys:
        if not isinstance(config.get(key), bool | None):
            yield problem(key, "must be true or false")


def length_problems(config: Mapping[str, Any], problem: Told) -> Iterator[ScheduleProblem]:
    """Yield num_train_timesteps if no schedule can have so many."""
    training = config.get("num_train_timesteps", 1000)
    if type(training) is not int or not 1 <= training <= MAX_TRAINING_TIMESTEPS:
        yield problem("num_train_timesteps", f"must be a whole number from 1 to {MAX_TRAINING_TIMESTEPS}")


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class that a configuration names; empty if it names none."""
    named = config.get("_class_name", "")
    return named if isinstance(named, str) else shown(named)


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def shown(value: object) -> str:
    """Return a value as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
