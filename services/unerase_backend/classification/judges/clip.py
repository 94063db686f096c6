"""Zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020): which of some texts fits the picture best.

    p(text) = softmax over texts of  s * cos(image embedding, text embedding),   s = exp(logit scale of the model)

The texts are the question's labels (what means the concept) and its alternatives (what else it may be). The score is
the probability mass of the labels; the concept is detected if the most probable text is a label; the similarity is the
greatest cosine with a label. The question chooses the prompts: "a picture of a church" is one text, "church" another.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.classification.batches import Batches
from unerase_backend.classification.pretrained import load_image_processor, load_model
from unerase_backend.classification.registry import Features, Picture, judge


@judge("clip")
class ClipJudge:
    """A CLIP model in the layout of openai/clip-vit-base-patch32."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        self._model = load_model(CLIPModel, folder, device, dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._process = load_image_processor(folder)
        self._length: int = self._model.config.text_config.max_position_embeddings
        self._scale = float(self._model.logit_scale.double().exp())
        self._embeddings = Batches(_Embeds(self._model), device, dtype, batch_size)
        self._device = device
        self._texts: dict[str, Features] = {}

    def problems(self, question: Question) -> list[tuple[str, str]]:
        """Check that a question has alternatives, and that each text is short enough and occurs once."""
        found = []
        if not question.alternatives:
            found.append(("alternatives", "a CLIP judge needs texts of what else the picture may show"))
        seen: set[str] = set()
        for field, texts in (("labels", question.labels), ("alternatives", question.alternatives)):
            for index, text in enumerate(texts):
                if text in seen:
                    found.append((f"{field}[{index}]", "the text occurs twice"))
                elif len(self._tokenizer(text).input_ids) > self._length:
                    found.append((f"{field}[{index}]", f"is longer than the {self._length} tokens the judge reads"))
                seen.add(text)
        return found

    def look(self, pictures: Sequence[Picture]) -> Features:
        """Return image embeddings of length 1, (pictures, projection)."""

        return _normalised(self._embeddings([self._process(picture) for picture in pictures])).numpy()

    def embedding(self, seen: Features) -> Features:
        """Return the image embedding as it is."""
        return seen

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Answer from one image embedding."""
        texts = [*question.labels, *question.alternatives]
        cosines = np.stack([self._embed(text) for text in texts]).astype(np.float64) @ seen.astype(np.float64)
        odds = np.exp(self._scale * (cosines - cosines.max()))
        probabilities = odds / odds.sum()
        best = int(probabilities.argmax())
        of_concept = len(question.labels)
        return Judgement(
            judge=question.judge,
            score=min(1.0, float(probabilities[:of_concept].sum())),
            detected=best < of_concept,
            label=texts[best],
            label_score=float(probabilities[best]),
            similarity=float(cosines[:of_concept].max()),
        )

    @torch.inference_mode()
    def _embed(self, text: str) -> Features:
        # One text in each call, padded to the full length, so that its embedding depends on no other text.
        if text not in self._texts:
            tokens = self._tokenizer(text, padding="max_length", max_length=self._length, return_tensors="pt")
            features = self._model.get_text_features(**tokens.to(self._device)).pooler_output
            self._texts[text] = _normalised(features)[0].numpy()
        return self._texts[text]


class _Embeds(torch.nn.Module):
    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeddings: Tensor = self.model.get_image_features(pixel_values).pooler_output
        return embeddings


def _normalised(embeddings: Tensor) -> Tensor:
    embeddings = embeddings.float()
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
    return (embeddings / lengths).cpu()
