"""ESD-x: Erased Stable Diffusion, cross-attention variant (Gandikota, Materzynska, Fiotto-Kaufman, Bau, ICCV 2023,
arXiv 2303.07345, equation 7; `_esd.py` has the objective).

Only the cross-attention layers are trained (the "x"): the effect of the prompt changes, while what the model knows
without a prompt does not. The rate here is larger, and the iterations fewer, than published.
"""

from unerase_backend.testbed.erasers import _esd
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

ITERATIONS = 300
RATE = 1e-3


@eraser("esd-x")
def erase_esd_x(subject: Subject, concept: Concept, iterations: int = ITERATIONS) -> None:
    """Train the cross-attention layers."""
    learned = [weight for name, weight in subject.unet.named_parameters() if ".attn2." in name]
    target = _esd.away_from(subject, _esd.frozen_copy(subject.unet))
    _esd.teach(subject, learned, _esd.prompts_of(subject, concept), target, RATE, iterations)
