"""The number of replicas: within bounds, monotone in the load, and still where the load wavers."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.config import AutoscalingConfig

from unerase_backend.generation.autoscaling import METRIC, TrajectoryPolicy, wanted_replicas

loads = st.floats(0, 1e6)
counts = st.integers(0, 200)
targets = st.floats(0.5, 1e4)
slacks = st.floats(0, 0.9)


@given(loads, counts, targets, slacks)
def test_there_are_enough_and_not_many_more(load: float, current: int, target: float, slack: float) -> None:
    wanted = wanted_replicas(load, current, target, slack)
    assert wanted >= 1
    assert wanted * target >= load * (1 - 1e-9)
    assert wanted == 1 or (wanted - 1) * target * (1 - slack) < load * (1 + 1e-9)


@given(loads, loads, counts, targets, slacks)
def test_more_load_never_asks_for_fewer(one: float, other: float, current: int, target: float, slack: float) -> None:
    less, more = sorted((one, other))
    assert wanted_replicas(less, current, target, slack) <= wanted_replicas(more, current, target, slack)


@given(loads, counts, targets, slacks)
def test_a_steady_load_is_settled_at_once(load: float, current: int, target: float, slack: float) -> None:
    wanted = wanted_replicas(load, current, target, slack)
    assert wanted_replicas(load, wanted, target, slack) == wanted


@given(st.integers(1, 100), st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_a_load_that_wavers_within_the_slack_changes_nothing(replicas: int, shares: list[float]) -> None:
    target, slack = 64.0, 0.3
    # From what `replicas - 1` would hold with room to spare, to what `replicas` hold.
    low, high = (replicas - 1) * target * (1 - slack) + 1e-6, replicas * target
    for share in shares:
        assert wanted_replicas(low + share * (high - low), replicas, target, slack) == replicas


def test_the_request_count_is_not_asked() -> None:
    # Serve's own policy would keep one replica for one request of 640 trajectories.
    assert wanted_replicas(640, 1, 64) == 10


def _context(told: dict[str, dict[str, float]] | None, running: list[str], target: int) -> Any:
    return SimpleNamespace(aggregated_metrics=told, running_replicas=running, target_num_replicas=target)


def test_the_policy_sums_over_the_replicas_that_run() -> None:
    policy = TrajectoryPolicy(target_trajectories=10)
    told = {METRIC: {"a": 25.0, "b": 5.0, "gone": 1000.0}}
    assert policy(_context(told, ["a", "b", "new"], 3)) == (3, {})
    assert policy(_context(told, ["a", "b"], 1)) == (3, {})


@pytest.mark.parametrize("told", [None, {}, {METRIC: {}}, {METRIC: {"gone": 99.0}}, {"other": {"a": 99.0}}])
def test_without_a_word_from_any_replica_nothing_changes(told: dict[str, dict[str, float]] | None) -> None:
    assert TrajectoryPolicy()(_context(told, ["a", "b"], 2)) == (2, {})


@pytest.mark.parametrize("arguments", [{"target_trajectories": 0}, {"target_trajectories": math.nan}, {"slack": 1}])
def test_arguments_without_meaning_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        TrajectoryPolicy(**arguments)


def test_serve_makes_the_policy_of_a_config() -> None:
    config = AutoscalingConfig(
        policy={
            "policy_function": "unerase_backend.generation.autoscaling:TrajectoryPolicy",
            "policy_kwargs": {"target_trajectories": 8},
        }
    )
    policy = _resolve_policy_callable(config.policy)
    assert policy(_context({METRIC: {"a": 33.0}}, ["a"], 1)) == (5, {})
