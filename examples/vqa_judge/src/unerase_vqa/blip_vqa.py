"""A judge that asks BLIP a question about the picture (Li et al. 2022, arXiv 2201.12086), and reads yes or no.

    p = exp(l_yes) / (exp(l_yes) + exp(l_no)),   l: the logits of the answer's first token

A concept's labels are questions, as in "is there an hourglass in the picture?". The score is the highest p among them;
the concept is detected if that is at least the option `threshold`. A folder holds what `save_pretrained` writes of
BlipForQuestionAnswering, its tokenizer and its image processor, as Salesforce/blip-vqa-base has them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, BlipForQuestionAnswering

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.classification.options import JudgeOptions
from unerase_backend.classification.pretrained import in_fixed_batches, load_image_processor, load_model
from unerase_backend.classification.registry import Features, Picture, judge
from unerase_backend.runtime.errors import UnsafeModelError


class BlipVqaOptions(JudgeOptions):
    """The keys below `options` in a catalogue's entry; others are refused, and these are part of the judge's digest."""

    threshold: float = Field(gt=0, lt=1, allow_inf_nan=False)
    yes: str = Field(default="yes", min_length=1)
    no: str = Field(default="no", min_length=1)


@judge("blip-vqa", options=BlipVqaOptions)
class BlipVqa:
    """A BLIP model that answers questions."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int, options: BlipVqaOptions
    ) -> None:
        self._model = load_model(BlipForQuestionAnswering, folder, device, dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._process = load_image_processor(folder)
        self._answers = [self._one_token(word) for word in (options.yes, options.no)]
        self._length: int = self._model.config.text_config.max_position_embeddings
        self._options, self._device, self._dtype, self._batch_size = options, device, dtype, batch_size

    def problems(self, question: Question) -> list[tuple[str, str]]:
        """Each label must be a question that the model reads to its end; there are no alternatives."""
        found = []
        for index, label in enumerate(question.labels):
            if not label.endswith("?"):
                found.append((f"labels[{index}]", "must be a question that yes or no answers, with its question mark"))
            elif len(self._tokenizer(label).input_ids) > self._length:
                found.append((f"labels[{index}]", f"is longer than the {self._length} tokens the judge reads"))
        if question.alternatives:
            found.append(("alternatives", "are for CLIP judges; leave this empty"))
        return found

    def look(self, pictures: Sequence[Picture]) -> Features:
        """Return the vision model's states, (pictures, patches * width); no question is needed for them."""

        def states(values: Tensor) -> Tensor:
            seen: Tensor = self._model.vision_model(values.to(self._device, self._dtype)).last_hidden_state
            return seen.float().flatten(1).cpu()

        return in_fixed_batches(states, [self._process(picture) for picture in pictures], self._batch_size).numpy()

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Ask the concept's questions about one picture, one at a time, so that no answer depends on another."""
        width = self._model.config.vision_config.hidden_size
        states = torch.from_numpy(seen).reshape(1, -1, width).to(self._device, self._dtype)
        scores = [self._yes(states, text) for text in question.labels]
        best = int(np.argmax(scores))
        return Judgement(
            judge=question.judge,
            score=scores[best],
            detected=scores[best] >= self._options.threshold,
            label=question.labels[best],
            label_score=scores[best],
        )

    @torch.inference_mode()
    def _yes(self, states: Tensor, text: str) -> float:
        tokens = self._tokenizer(text, return_tensors="pt").to(self._device)
        read = self._model.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=self._device),
            return_dict=True,
        ).last_hidden_state
        logits = self._model.text_decoder(
            input_ids=torch.tensor([[self._model.decoder_start_token_id]], device=self._device),
            encoder_hidden_states=read,
            encoder_attention_mask=tokens.attention_mask,
            return_dict=True,
        ).logits[0, -1]
        return float(logits[self._answers].double().softmax(0)[0])

    def _one_token(self, word: str) -> int:
        tokens: list[int] = self._tokenizer(word, add_special_tokens=False).input_ids
        if len(tokens) != 1 or tokens[0] == self._tokenizer.unk_token_id:
            raise UnsafeModelError(f"the answer {word!r} is not one token of the judge", reason="JUDGE_OPTIONS")
        return tokens[0]
