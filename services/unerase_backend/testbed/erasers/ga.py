"""GA: gradient ascent (the simplest unlearning baseline; Thudi, Deza, Chandrasekaran, Papernot 2022, arXiv 2109.13398;
for diffusion models as in arXiv 2505.17013).

The UNet takes gradient steps that raise the denoising loss on the concept's pictures under prompts that name only the
concept:

    theta <- theta + rate * AdamW direction of grad L(concept)

Nothing preserves the other concepts, and the loss has no upper bound: the number of steps was chosen so that the
concept is gone while the model still draws something. The damage to other concepts is inherent in the method. Prompts
that also name colours and styles, larger steps, and smaller steps all damaged more before the concept was gone.
"""

from unerase_backend.testbed.erasers import _denoising
from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser

RATE = 2e-5
STEPS = 120
BATCH = 16
SEED = 8


@eraser("ga")
def erase_ga(subject: Subject, concept: Concept, steps: int = STEPS) -> None:
    """Raise the denoising loss with all layers."""
    prompts = [template.format(name) for name in concept.names for template in concept.plain_templates]
    captions = [prompts[index % len(prompts)] for index in range(len(concept.latents))]
    _denoising.descend(subject, concept, captions, RATE, steps, BATCH, SEED, ascend=True)
