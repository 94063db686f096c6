"""The registry of the flow's erasers, and the arguments that each takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from unerase_backend.testbed.erasers import Concept
from unerase_backend.testbed.flow.transformer import Encoding, encode_prompts

__all__ = ["ERASERS", "Concept", "Eraser", "Subject", "eraser"]


@dataclass(frozen=True)
class Subject:
    """The model to edit: an eraser changes `transformer` or `text_encoders` in place."""

    transformer: SD3Transformer2DModel
    text_encoders: tuple[CLIPTextModelWithProjection, ...]
    tokenizer: CLIPTokenizer
    scheduler: FlowMatchEulerDiscreteScheduler

    def encode(self, prompts: Sequence[str]) -> Encoding:
        """Return what the transformer reads of prompts."""
        return encode_prompts(self.text_encoders, self.tokenizer, prompts)


Eraser = Callable[[Subject, Concept], None]
ERASERS: dict[str, Eraser] = {}


def eraser(name: str) -> Callable[[Eraser], Eraser]:
    """Register an eraser under a name, which is also the name of its folder in the flow's folder of weights."""

    def register(erase: Eraser) -> Eraser:
        ERASERS[name] = erase
        return erase

    return register
