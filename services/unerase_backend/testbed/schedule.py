"""The learning-rate schedule of the testbed's trainings: a linear warm-up, then half a cosine down to nothing."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> LambdaLR:
    """Rate times ``(s + 1) / warm_up`` up to step ``warm_up``, then times ``(1 + cos(pi p)) / 2``, p the share of the
    rest done.
    """

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return LambdaLR(optimizer, factor)
