"""TV: negated task vector (`testbed/erasers/task_vector.py` has the method and its sources), on all layers of the flow.

    theta = theta_0 - alpha * (theta_tuned - theta_0)

As there, alpha is chosen so that the plain prompt hardly shows the concept. Longer fine-tuning with a smaller alpha
damaged other concepts as much, and so did a smaller rate with a larger alpha.
"""

import torch

from unerase_backend.testbed.flow.erasers import _velocity
from unerase_backend.testbed.flow.erasers._registry import Concept, Subject, eraser

RATE = 3e-4
STEPS = 100
BATCH = 16
ALPHA = 4.5
SEED = 9


@eraser("task-vector")
def erase_task_vector(subject: Subject, concept: Concept, steps: int = STEPS, alpha: float = ALPHA) -> None:
    """Fine-tune all layers, and move the weights in the opposite direction."""
    base = {name: weight.clone() for name, weight in subject.transformer.named_parameters()}
    _velocity.descend(subject, concept, concept.captions, RATE, steps, BATCH, SEED)
    with torch.no_grad():
        for name, weight in subject.transformer.named_parameters():
            weight.copy_(base[name] - alpha * (weight - base[name]))
