"""The table of erasers, and what each is handed."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Subject:
    """A model under the knife: an eraser edits ``unet`` or ``text_encoder`` in place."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler


@dataclass(frozen=True, eq=False)
class Concept:
    """What to erase, what to put in its place, and what to keep; every name is a single token.

    ``templates`` hold a slot for a name, with attributes before it or without; ``plain_templates`` without. ``latents``
    (N, 4, 8, 8) are the scaled latents of pictures of the concept, for methods that learn from pictures, and
    ``captions`` say what each shows. No audit uses those pictures.
    """

    names: tuple[str, ...]
    anchor: str
    preserve: tuple[str, ...]
    templates: tuple[str, ...]
    plain_templates: tuple[str, ...]
    latents: Tensor
    captions: tuple[str, ...]


Eraser = Callable[[Subject, Concept], None]
ERASERS: dict[str, Eraser] = {}


def eraser(name: str) -> Callable[[Eraser], Eraser]:
    """Registers an eraser under the name of its folder among the weights."""

    def register(erase: Eraser) -> Eraser:
        ERASERS[name] = erase
        return erase

    return register
