"""Safe latent diffusion: the guidance also leads away from a concept, where the prompt leads towards it.

Schramowski, Brack, Deiseroth, Kersting, "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion
Models", arXiv 2211.05105, equations 3 to 8. With e the model's prediction under the prompt p, the empty prompt and the
concept S, in each step

    d   = e_p - e_S
    mu  = min(1, |guidance_scale * d|) where d < threshold, 0 elsewhere
    g   = mu (e_S - e_empty) + momentum_scale * v
    v'  = momentum_beta * v + (1 - momentum_beta) g,                    v = 0 at first
    e   = e_empty + scale * (e_p - e_empty - g),                        without g in the first warmup_steps steps

The paper writes max(1, .) in mu; this is what its authors' code and diffusers' StableDiffusionPipelineSafe compute. The
defaults are the paper's "medium"; "strong" is 2000, 7, 0.025, 0.5, 0.7, "maximum" 5000, 0, 1.0, 0.5, 0.7.

The threshold and the scales are figures of noise. Of a model that predicts the velocity v, whose noise is s x + a v
(`prediction.py`), or a flow, whose noise is x + a v, e_p - e_S and e_S - e_empty are a times the differences of v, and
g changes v by g / a; where a is below 0.02 it changes nothing. diffusers' pipeline has the formula for models that
predict the noise alone.

A trajectory that resumes keeps the schedule's count of steps for the warm-up and begins with v = 0, which is not part
of its latents. Without guidance (scale 1) the guard has no effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, Guidance, guard

if TYPE_CHECKING:
    from torch import Tensor

_Finite = Field(allow_inf_nan=False)
_MOMENTUM = "safe-latent-diffusion momentum"


class SafeLatentDiffusionParameters(GuardParameters):
    """`text`, the concept to avoid, and the figures of the formula."""

    text: Annotated[str, Field(min_length=1, max_length=1000)]
    guidance_scale: Annotated[float, Field(ge=0, le=100_000), _Finite] = 1000.0
    warmup_steps: Annotated[int, Field(ge=0, le=1000)] = 10
    threshold: Annotated[float, Field(ge=-100, le=100), _Finite] = 0.01
    momentum_scale: Annotated[float, Field(ge=0, le=1), _Finite] = 0.3
    momentum_beta: Annotated[float, Field(ge=0, lt=1), _Finite] = 0.4


@guard("safe-latent-diffusion")
class SafeLatentDiffusion(Guard):
    """Adds a third prediction to each guided step."""

    Parameters = SafeLatentDiffusionParameters
    single = True
    needs_classifier_free = True
    rows = 1

    def __init__(self, parameters: SafeLatentDiffusionParameters, pipeline: Path, device: Any) -> None:
        super().__init__(parameters, pipeline, device)
        self.concept = parameters.text

    def guide(self, guidance: Guidance, memory: dict[str, Tensor]) -> Tensor | None:
        """Return the prediction by the formula."""
        given, concept = self.parameters, guidance.concept
        assert concept is not None  # noqa: S101 - it has a concept
        of_noise = 1 / guidance.per_noise if guidance.per_noise else 0.0
        difference = (guidance.conditioned - concept) * of_noise
        scale = (difference.abs() * given.guidance_scale).clamp(max=1.0)
        scale = scale.masked_fill(difference >= given.threshold, 0.0)
        momentum = memory.get(_MOMENTUM, difference * 0.0)
        away = (concept - guidance.empty) * of_noise * scale + given.momentum_scale * momentum
        memory[_MOMENTUM] = given.momentum_beta * momentum + (1 - given.momentum_beta) * away
        towards = guidance.conditioned - guidance.empty
        if guidance.step >= given.warmup_steps:
            towards = towards - away * guidance.per_noise
        return guidance.empty + guidance.scale * towards
