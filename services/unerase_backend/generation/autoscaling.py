"""How many replicas generation wants: by the trajectories in them, not by the number of requests.

Serve's own policy counts requests, and one request to generation holds anything from one trajectory to several hundred.
Here each replica tells how many it has, queued ones included (`record_autoscaling_stats`), Serve averages that over
`look_back_period_s`, and this policy makes a number of replicas of it. Serve then applies its own delays and bounds.

The file stands alone: Serve sends it to its controller by value.
"""

import math
from collections.abc import Mapping
from typing import Any

METRIC = "trajectories"
"""The name under which replicas tell their load."""


def wanted_replicas(trajectories: float, current: int, target: float, slack: float = 0.3) -> int:
    """Return the number of replicas for a load; at least one.

    With up to `target` trajectories for each replica there are enough. One is given back only where those that are left
    would have no more than `1 - slack` of their target: a load that wavers by less changes nothing.

    Args:
        trajectories: Asked for and not answered, over all replicas.
        current: Replicas there are.
        target: Trajectories that keep one replica well filled; positive.
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

        While no replica has told anything, as just after a start, nothing changes.
        """
        told: Mapping[Any, float] = (context.aggregated_metrics or {}).get(METRIC, {})
        loads = [told[replica] for replica in context.running_replicas if replica in told]
        if not loads:
            return context.target_num_replicas, {}
        # One that has started and told nothing yet has nothing to do yet.
        return wanted_replicas(sum(loads), context.target_num_replicas, self._target, self._slack), {}
