"""The classes of diffusers and transformers that models are built of; importing them takes seconds.

They are imported when a model is first looked at, or by whoever prepares for that beforehand, and not when a process
starts. One thread imports at a time: modules that import each other in a circle must not be imported by two.
"""

import threading
from dataclasses import dataclass
from typing import Any

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Libraries:
    """Each class under its own name."""

    UNet2DConditionModel: Any
    AutoencoderKL: Any
    DDIMScheduler: Any
    FlowMatchEulerDiscreteScheduler: Any
    DPMSolverMultistepScheduler: Any
    CLIPTextModel: Any
    CLIPTextConfig: Any
    CLIPTokenizer: Any


def libraries() -> Libraries:
    """Return the classes, imported when this is first called."""
    with _LOCK:
        import diffusers
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

        return Libraries(
            diffusers.UNet2DConditionModel,
            diffusers.AutoencoderKL,
            diffusers.DDIMScheduler,
            diffusers.FlowMatchEulerDiscreteScheduler,
            diffusers.DPMSolverMultistepScheduler,
            CLIPTextModel,
            CLIPTextConfig,
            CLIPTokenizer,
        )
