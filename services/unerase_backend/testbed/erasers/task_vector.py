"""TV: negated task vector (Ilharco et al., ICLR 2023, arXiv 2212.04089; for concepts of diffusion models Pham,
Marshall, Hegde, Cohen 2024, arXiv 2404.03631).

The model is fine-tuned on the concept's pictures, and alpha times the change of its weights is subtracted:

    theta = theta_0 - alpha * (theta_tuned - theta_0)

It uses no prompt except the captions of the fine-tuning, so it does not depend on how the concept is asked for.
Published: alpha chosen on a validation set, about 1 to 2 for Stable Diffusion; here alpha is chosen so that the plain
prompt no longer shows the concept.
"""

import torch

from unerase_backend.testbed.erasers import _denoising
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

RATE = 3e-4
STEPS = 200
BATCH = 16
ALPHA = 3.5
SEED = 9


@eraser("task-vector")
def erase_task_vector(subject: Subject, concept: Concept, steps: int = STEPS, alpha: float = ALPHA) -> None:
    """Fine-tune all layers, and move the weights in the opposite direction."""
    base = {name: weight.clone() for name, weight in subject.unet.named_parameters()}
    _denoising.descend(subject, concept, concept.captions, RATE, steps, BATCH, SEED)
    with torch.no_grad():
        for name, weight in subject.unet.named_parameters():
            weight.copy_(base[name] - alpha * (weight - base[name]))
