"""ESD-u: Erased Stable Diffusion, unconditional variant (Gandikota, Materzynska, Fiotto-Kaufman, Bau, ICCV 2023,
arXiv 2303.07345, equation 7; `_esd.py` has the objective).

All layers except the cross-attention are trained (the "u"), so that the concept disappears for every prompt, at the
cost of concepts that resemble it. The rate here is larger, and the iterations fewer, than published.
"""

from unerase_backend.testbed.erasers import _esd
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

ITERATIONS = 300
RATE = 2e-4


@eraser("esd-u")
def erase_esd_u(subject: Subject, concept: Concept, iterations: int = ITERATIONS) -> None:
    """Train all layers except the cross-attention."""
    learned = [weight for name, weight in subject.unet.named_parameters() if ".attn2." not in name]
    target = _esd.away_from(subject, _esd.frozen_copy(subject.unet))
    _esd.teach(subject, learned, _esd.prompts_of(subject, concept), target, RATE, iterations)
