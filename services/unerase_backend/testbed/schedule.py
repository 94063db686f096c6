"""The learning-rate schedule of the testbed's training runs: a linear warm-up, then half a cosine down to 0."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> LambdaLR:
    """Return the schedule that multiplies the learning rate at step s by a factor.

    It is (s + 1) / warm_up before step `warm_up`, then (1 + cos(pi p)) / 2, where p is the share of the remaining steps
    that is done.
    """

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return LambdaLR(optimizer, factor)
