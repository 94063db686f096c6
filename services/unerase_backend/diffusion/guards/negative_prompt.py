"""Negative prompt: the guidance leads away from a text instead of away from the empty prompt.

    e = e_negative + scale * (e_prompt - e_negative)

The same as `negative_prompt` of diffusers' StableDiffusionPipeline. Without guidance (scale 1) it has no effect.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, guard


class NegativePromptParameters(GuardParameters):
    """`text`: what the pictures should not show."""

    text: Annotated[str, Field(min_length=1, max_length=1000)]


@guard("negative-prompt")
class NegativePrompt(Guard):
    """Encodes `text` in place of the empty prompt."""

    Parameters = NegativePromptParameters
    single = True
    needs_classifier_free = True

    def __init__(self, parameters: NegativePromptParameters, pipeline: Path, device: Any) -> None:
        super().__init__(parameters, pipeline, device)
        self.negative = parameters.text
