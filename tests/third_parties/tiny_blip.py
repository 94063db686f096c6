"""A tiny BLIP of random weights in the layout of Salesforce/blip-vqa-base, as a judge of the example's kind.

    python tiny_blip.py CATALOGUE

compares the judge with transformers' own `generate`, and prints JSON: what was compared, and what is refused.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipTextConfig,
    BlipVisionConfig,
)

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.judge_check import judge_findings
from unerase_backend.classification.records import judge_record
from unerase_backend.classification.registry import kinds, load_judge
from unerase_backend.runtime.errors import UneraseError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = [*SPECIAL, "yes", "no", "is", "there", "a", "an", "in", "the", "picture", "hourglass", "heart", "?"]
JUDGE = "own/vqa"
QUESTIONS = ["is there an hourglass in the picture?", "is there a heart?"]


def save(folder: Path) -> None:
    """Write the model's folder."""
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = BlipTextConfig(
        **size,
        vocab_size=len(WORDS),
        encoder_hidden_size=32,
        max_position_embeddings=24,
        bos_token_id=WORDS.index("[DEC]"),
        pad_token_id=0,
        eos_token_id=3,
        sep_token_id=3,
    )
    vision = BlipVisionConfig(**size, image_size=32, patch_size=8)
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    for name, weights in model.named_parameters():
        if weights.ndim > 1:
            # Strong enough for the answers to depend on the picture.
            weights.data = torch.randn_like(weights) * weights[0].numel() ** -0.5
            weights.data *= 3 if "crossattention" in name and "query" not in name else 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def main(file: str) -> None:
    catalogue = Catalogue.load([file])
    entry = catalogue.judge(JUDGE)
    judge: Any = load_judge(JUDGE, entry, torch.device("cpu"), torch.float32, 4)
    pictures = list(np.random.default_rng(1).integers(0, 256, (8, 2, 2, 3), dtype=np.uint8))
    pictures = [picture.repeat(24, axis=0).repeat(24, axis=1) for picture in pictures]
    model = BlipForQuestionAnswering.from_pretrained(entry.folder).eval()
    tokenizer = BertTokenizer.from_pretrained(entry.folder)
    values = BlipImageProcessorPil.from_pretrained(entry.folder)(pictures, return_tensors="pt").pixel_values
    expected = np.zeros((len(pictures), len(QUESTIONS)))
    for column, text in enumerate(QUESTIONS):
        tokens = tokenizer([text] * len(pictures), return_tensors="pt")
        ways = {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True, "do_sample": False}
        said = model.generate(pixel_values=values, input_ids=tokens.input_ids, **ways).scores[0]
        expected[:, column] = said[:, [WORDS.index("yes"), WORDS.index("no")]].double().softmax(1)[:, 0].numpy()
    answers = [judge.answer(row, Question(judge=JUDGE, labels=QUESTIONS)) for row in judge.look(pictures)]

    def refusal(act: Callable[[], Any]) -> str:
        try:
            act()
        except UneraseError as error:
            return error.message
        return ""

    wrong = entry.model_copy(update={"options": {"treshold": 0.5}})
    rare = entry.model_copy(update={"options": {"threshold": 0.5, "yes": "indeed"}})
    how = (torch.device("cpu"), torch.float32, 4)
    record = judge_record(JUDGE, catalogue, {name: kind.provider for name, kind in kinds().items()})
    print(
        json.dumps(
            {
                "difference": float(np.abs([answer.score for answer in answers] - expected.max(axis=1)).max()),
                "spread": float(np.ptp([answer.score for answer in answers])),
                "detected": [answer.detected for answer in answers] == list(expected.max(axis=1) >= 0.5),
                "labels": [answer.label for answer in answers]
                == [QUESTIONS[index] for index in expected.argmax(axis=1)],
                "problems": judge.problems(Question(labels=["an hourglass", QUESTIONS[0]], alternatives=["a heart"])),
                "findings": [str(finding) for finding in judge_findings(catalogue)],
                "options": refusal(lambda: load_judge(JUDGE, wrong, *how)),
                "answer": refusal(lambda: load_judge(JUDGE, rare, *how)),
                "provider": record.provider,
                "threshold": record.threshold,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
