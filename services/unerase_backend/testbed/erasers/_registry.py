"""The registry of erasers, and the arguments that each takes."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Subject:
    """The model to edit: an eraser changes `unet` or `text_encoder` in place."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler


@dataclass(frozen=True, eq=False)
class Concept:
    """What to erase, what to put in its place, and what to preserve; every name is a single token.

    `templates` have a slot for a name, some with attributes before it; `plain_templates` have no attributes. `latents`,
    (N, 4, 8, 8), are the scaled latents of pictures of the concept, for methods that learn from pictures, and
    `captions`, which end with a name, describe them. `kept_latents` and `kept_captions` are the same for what to
    preserve. No audit uses any of those pictures.
    """

    names: tuple[str, ...]
    anchor: str
    preserve: tuple[str, ...]
    templates: tuple[str, ...]
    plain_templates: tuple[str, ...]
    latents: Tensor
    captions: tuple[str, ...]
    kept_latents: Tensor
    kept_captions: tuple[str, ...]


Eraser = Callable[[Subject, Concept], None]
ERASERS: dict[str, Eraser] = {}


def eraser(name: str) -> Callable[[Eraser], Eraser]:
    """Register an eraser under a name, which is also the name of its folder in the weights folder."""

    def register(erase: Eraser) -> Eraser:
        ERASERS[name] = erase
        return erase

    return register
