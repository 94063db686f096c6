"""SAFREE's projection: tokens near a concept are moved out of its subspace before the UNet reads them.

Yoon, Yu, Patil, Yao, Bansal, "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation",
arXiv 2410.12761, section 3.1 and 3.2. With p_i the pooled encoding of the prompt in which token i is masked (by the
token 0, as in the authors' code), C the pooled encodings of the concepts, and P_X the orthogonal projection onto the
span of the columns of X,

    d_i       = || (1 - P_C) p_i ||
    trigger_i = d_i >= (1 + alpha) * mean over j != i of d_j
    c_i       = (1 - P_C) P_I c_i    for trigger tokens,    I = (p_1 ... p_n)

c is the text encoder's output for the prompt. Start, end and padding stay as they are, and so does what has no words.
The paper's two further parts, the number of steps that use the projection (its self-validating filter) and the
filtering of features in frequency space, are left out: the projected encoding is used in every step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from weakref import WeakKeyDictionary

from pydantic import Field

from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, guard

if TYPE_CHECKING:
    from torch import Tensor

    from unerase_backend.diffusion.encoding import Encoding
    from unerase_backend.diffusion.model import DiffusionModel
    from unerase_backend.diffusion.prompt import Prompt

_MASK = 0
"""The id that stands for a masked token."""


class SafreeParameters(GuardParameters):
    """`concepts`, the phrases that span the subspace, and `alpha`, how far a token may stand out."""

    concepts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...],
        Field(strict=False, min_length=1, max_length=100),
    ]
    alpha: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.01


@guard("safree")
class Safree(Guard):
    """Projects the encodings of trigger tokens."""

    Parameters = SafreeParameters
    single = True
    # The method is given for the last hidden states of one CLIP.
    families = ("stable-diffusion",)

    def __init__(self, parameters: SafreeParameters, pipeline: Path, device: Any) -> None:
        super().__init__(parameters, pipeline, device)
        self._outside: WeakKeyDictionary[DiffusionModel, Tensor] = WeakKeyDictionary()

    def project(self, model: DiffusionModel, prompt: Prompt, learned: Tensor | None, encoding: Encoding) -> Encoding:
        """Return the encoding with its trigger tokens projected."""
        import torch

        from unerase_backend.diffusion.encoding import STATES, Encoding

        count = _end(model, prompt, learned) - 1
        if not count:
            return encoding
        outside = self._outside_concepts(model)
        masked = _pooled(model, [_masked(model, prompt, learned, place) for place in range(1, count + 1)])
        distances = (outside @ masked).norm(dim=0)
        others = (distances.sum() - distances) / max(count - 1, 1)
        triggers = distances >= (1 + self.parameters.alpha) * others
        words = encoding.states[1 : count + 1].double()
        moved = (outside @ _onto(masked) @ words.T).T
        changed = encoding.states.clone()
        changed[1 : count + 1] = torch.where(triggers[:, None], moved, words).to(changed)
        return Encoding({STATES: changed})

    def _outside_concepts(self, model: DiffusionModel) -> Tensor:
        """Return 1 - P_C, (width, width), float64."""
        import torch

        from unerase_backend.diffusion.conditioning import tokenise

        if model not in self._outside:
            concepts = _pooled(model, [(tokenise(model, text), None) for text in self.parameters.concepts])
            self._outside[model] = torch.eye(len(concepts)).to(concepts) - _onto(concepts)
        return self._outside[model]


def _end(model: DiffusionModel, prompt: Prompt, learned: Tensor | None) -> int:
    """Return the position of the end token; a learned word stands at places with the same id."""
    tokens = 0 if learned is None else len(learned)
    taken = {start + offset for start in prompt.learned_at for offset in range(tokens)}
    end = model.tokenizer.eos_token_id
    return next(place for place, token in enumerate(prompt.ids) if token == end and place not in taken)


def _masked(model: DiffusionModel, prompt: Prompt, learned: Tensor | None, place: int) -> tuple[Prompt, Tensor | None]:
    """Return the prompt with one token masked, at all its places if it is of a learned word."""
    from unerase_backend.diffusion.prompt import Prompt

    frame = prompt.frames[0]
    ids = (*frame.ids[:place], _MASK, *frame.ids[place + 1 :])
    if learned is not None:
        for start in prompt.learned_at:
            if 0 <= place - start < len(learned):
                learned = learned.clone()
                learned[place - start] = model.text_encoder.get_input_embeddings().weight[_MASK].to(learned)
                break
    return Prompt((replace(frame, ids=ids),)), learned


def _pooled(model: DiffusionModel, prompts: list[tuple[Prompt, Tensor | None]]) -> Tensor:
    """Return the encodings at the end token, (width, prompts), float64."""
    import torch

    from unerase_backend.diffusion.conditioning import encode_prompts

    ends = [_end(model, *prompt) for prompt in prompts]
    encoded = encode_prompts(model, prompts)
    return torch.stack([each.states[end] for each, end in zip(encoded, ends, strict=True)], dim=1).double()


def _onto(columns: Tensor) -> Tensor:
    """Return the orthogonal projection onto the span of columns, (width, width)."""
    return columns @ columns.pinverse()
