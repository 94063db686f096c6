"""GA: gradient ascent on the flow's training loss (`testbed/erasers/ga.py` has the method and its sources).

    theta <- theta + rate * AdamW direction of grad mean((v(x, t, c) - (e - x_0))^2)

As there, the prompts name only the concept. Rate and steps were chosen so that the concept is nearly gone while the
model still draws other things. No setting erased the concept and kept the rest: 70 steps at 2e-5 and 300 at 5e-6 did no
less damage.
"""

from unerase_backend.testbed.flow.erasers import _velocity
from unerase_backend.testbed.flow.erasers._registry import Concept, Subject, eraser

RATE = 5e-5
STEPS = 30
BATCH = 16
SEED = 8


@eraser("ga")
def erase_ga(subject: Subject, concept: Concept, steps: int = STEPS) -> None:
    """Raise the training loss with all layers."""
    prompts = [template.format(name) for name in concept.names for template in concept.plain_templates]
    captions = [prompts[index % len(prompts)] for index in range(len(concept.latents))]
    _velocity.descend(subject, concept, captions, RATE, steps, BATCH, SEED, ascend=True)
