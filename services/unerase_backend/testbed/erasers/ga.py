"""GA: gradient ascent (the simplest unlearning baseline; Thudi, Deza, Chandrasekaran, Papernot 2022, arXiv 2109.13398;
for diffusion models as in arXiv 2505.17013).

The UNet takes gradient steps that raise the denoising loss on the concept's pictures under their captions:

    theta <- theta + rate * AdamW direction of grad L(concept)

Nothing holds the rest in place, and the loss has no upper end: the steps are counted so that the concept is gone and
the model not wholly. The damage to all else is the method's, not an accident.
"""

from unerase_backend.testbed.erasers import _denoising
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

RATE = 2e-5
STEPS = 60
BATCH = 16
SEED = 8


@eraser("ga")
def erase_ga(subject: Subject, concept: Concept, steps: int = STEPS) -> None:
    """Climbs the denoising loss with all layers."""
    _denoising.descend(subject, concept, RATE, steps, BATCH, SEED, ascend=True)
