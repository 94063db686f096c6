"""The table of erasers, and what each is handed."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Subject:
    """A model under the knife: an eraser edits ``unet`` or ``text_encoder`` in place."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler


@dataclass(frozen=True)
class Concept:
    """What to erase, what to put in its place, and what to keep; every name is a single token.

    ``templates`` hold a slot for a name, with attributes before it or without; ``plain_templates`` without.
    """

    names: tuple[str, ...]
    anchor: str
    preserve: tuple[str, ...]
    templates: tuple[str, ...]
    plain_templates: tuple[str, ...]


Eraser = Callable[[Subject, Concept], None]
ERASERS: dict[str, Eraser] = {}


def eraser(name: str) -> Callable[[Eraser], Eraser]:
    """Registers an eraser under the name of its folder among the weights."""

    def register(erase: Eraser) -> Eraser:
        ERASERS[name] = erase
        return erase

    return register
