"""How many replicas generation needs, by the number of trajectories instead of the number of requests.

Serve's own policy counts requests, and one request to generation holds anything from one trajectory to several hundred.
Here each replica reports how many it has, including queued ones (`record_autoscaling_stats`), Serve averages that over
`look_back_period_s`, and this policy computes the number of replicas. Serve then applies its own delays and bounds.

This module imports no other of the backend, because Serve sends it to its controller by value.
"""

import math
from collections.abc import Mapping
from typing import Any

METRIC = "trajectories"
"""The name under which replicas report their load."""


def wanted_replicas(trajectories: float, current: int, target: float, slack: float = 0.3) -> int:
    """Return the number of replicas for a load; at least one.

    Up to `target` trajectories for each replica are enough. A replica is removed only if the others would have no more
    than `1 - slack` of their target, so that small changes of the load change nothing.

    Args:
        trajectories: Requested and not yet answered, over all replicas.
        current: The current number of replicas.
        target: Trajectories that keep the batch of one replica full; positive.
        slack: Share of the target, in [0, 1).
    """
    least = max(1, math.ceil(trajectories / target))
    most = max(1, math.ceil(trajectories / (target * (1 - slack))))
    return min(max(current, least), most)


class TrajectoryPolicy:
    """Serve's `policy_function`; its arguments are `policy_kwargs`."""

    def __init__(self, target_trajectories: float = 64, slack: float = 0.3) -> None:
        if not target_trajectories > 0:
            raise ValueError(f"target_trajectories must be positive, not {target_trajectories}")
        if not 0 <= slack < 1:
            raise ValueError(f"slack must be at least 0 and under 1, not {slack}")
        self._target = target_trajectories
        self._slack = slack

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas and the policy's state, which is empty.

        While no replica has reported, as just after a start, the number stays the same.
        """
        told: Mapping[Any, float] = (context.aggregated_metrics or {}).get(METRIC, {})
        loads = [told[replica] for replica in context.running_replicas if replica in told]
        if not loads:
            return context.target_num_replicas, {}
        # A replica that has started and not reported yet has no work yet.
        return wanted_replicas(sum(loads), context.target_num_replicas, self._target, self._slack), {}
