"""Small judges with random weights in the layouts of the model hub, and an engine over them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
)

from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import NotFoundError

SIDE = 32
OBJECT_LABELS = ["circle", "square", "hourglass", "heart", "striped", "red"]
# As ImageNet writes its labels: synonyms after commas, "crane" twice, "maillot" once alone and once with a synonym.
IMAGENET_LABELS = [
    "tench, Tinca tinca",
    "chain saw, chainsaw",
    "golf ball",
    "crane",
    "crane",
    "maillot",
    "maillot, tank suit",
    "parachute, chute",
]


@dataclass(frozen=True)
class JudgeEntry:
    """What the engine reads of a catalogue's entry."""

    kind: str
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judges:
    """The part of a catalogue that the engine uses."""

    judges: dict[str, JudgeEntry]

    def judge(self, name: str) -> JudgeEntry:
        if name not in self.judges:
            raise NotFoundError(f"no judge {name!r}", reason="JUDGE_NOT_FOUND")
        return self.judges[name]


def save_clip(folder: Path) -> None:
    """A CLIP model laid out as openai/clip-vit-base-patch32 is, legacy processor file included."""
    words = ["a", "picture", "of", "the", "hourglass", "heart", "circle", "tower", "car", "sky", "painting"]
    letters = [chr(code) for code in range(0x21, 0x7F)]
    symbols = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            symbols[parts[0]] = None
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=16)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=8
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))
    for name, weights in model.vision_model.named_parameters():
        if weights.ndim > 1 and "norm" not in name:
            weights.data *= 10
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": SIDE,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": SIDE,
            }
        )
    )


def save_resnet(folder: Path) -> None:
    """A softmax classifier laid out as microsoft/resnet-50 is, legacy processor file included."""
    torch.manual_seed(2)
    labels = dict(enumerate(IMAGENET_LABELS))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=labels)
    model = ResNetForImageClassification(config)
    # Centred logits of some spread, so that no class is always the first choice.
    model.classifier[1].weight.data *= 200
    with torch.no_grad():
        coarse = torch.rand(64, 3, 8, 8).repeat_interleave(SIDE // 8, 2).repeat_interleave(SIDE // 8, 3)
        logits = model.eval()(pixel_values=coarse * 4 - 2).logits
        model.classifier[1].bias.data -= logits.mean(0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_pct": 0.875,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "ConvNextFeatureExtractor",
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
                "resample": 3,
                "size": SIDE,
            }
        )
    )


def save_convnext(folder: Path) -> None:
    """A multi-label classifier with the processor file of today."""
    torch.manual_seed(3)
    config = ConvNextConfig(
        patch_size=2,
        num_stages=2,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        id2label=dict(enumerate(OBJECT_LABELS)),
        problem_type="multi_label_classification",
    )
    model = ConvNextForImageClassification(config)
    model.classifier.weight.data *= 100
    model.save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=1.0).save_pretrained(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    for name, save in {"clip": save_clip, "resnet": save_resnet, "convnext": save_convnext}.items():
        save(root / name)
    return {name: root / name for name in ("clip", "resnet", "convnext")}


@pytest.fixture(scope="session")
def judges_of() -> Callable[..., Judges]:
    """Makes a catalogue of judges: name=(kind, folder)."""
    return lambda **judges: Judges({name: JudgeEntry(*entry) for name, entry in judges.items()})


@pytest.fixture(scope="session")
def judges(folders: dict[str, Path], judges_of: Callable[..., Judges]) -> Judges:
    kinds = {"clip": "clip", "resnet": "classifier", "convnext": "classifier"}
    return judges_of(**{name: (kinds[name], folder) for name, folder in folders.items()})


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ClassificationSettings:
    return ClassificationSettings(artifacts=str(tmp_path_factory.mktemp("unused")), batch_size=8)


@pytest.fixture(scope="session")
def engine(judges: Judges, store: ArtifactStore, settings: ClassificationSettings) -> ClassificationEngine:
    return ClassificationEngine(judges, store, settings)


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Twenty pictures: noise of several frequencies, so that the scores differ."""
    draws = np.random.default_rng(4)
    coarse = draws.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
