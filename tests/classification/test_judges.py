"""The judges against direct calls of transformers, and their label tables."""

import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    ConvNextForImageClassification,
    ConvNextImageProcessorPil,
    ResNetForImageClassification,
)

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.classification.judges.classifier import Classifier
from unerase_backend.classification.judges.clip import ClipJudge
from unerase_backend.classification.judges.detector import Detector
from unerase_backend.classification.labels import label_table
from unerase_backend.classification.registry import Judge, kinds
from unerase_backend.runtime.errors import UnsafeModelError

HOURGLASS = ["a picture of a hourglass", "the hourglass"]
OTHERS = ["a picture of a heart", "a picture of a circle", "a painting of the sky"]


def load(kind: str, folder: Path, batch_size: int = 8) -> Judge:
    return kinds()[kind].load(folder, torch.device("cpu"), torch.float32, batch_size)


def test_clip_equals_transformers(folders: dict[str, Path], pictures: np.ndarray) -> None:
    judge = load("clip", folders["clip"])
    question = Question(judge="clip", labels=HOURGLASS, alternatives=OTHERS)
    answers = [judge.answer(row, question) for row in judge.look(list(pictures))]

    model = CLIPModel.from_pretrained(folders["clip"])
    tokens = AutoTokenizer.from_pretrained(folders["clip"])([*HOURGLASS, *OTHERS], padding=True, return_tensors="pt")
    values = CLIPImageProcessorPil.from_pretrained(folders["clip"])(list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        output = model(**tokens, pixel_values=values)
    probabilities = output.logits_per_image.softmax(1).numpy()
    cosines = (output.image_embeds @ output.text_embeds.T).numpy()

    np.testing.assert_allclose([a.score for a in answers], probabilities[:, :2].sum(1), atol=1e-5)
    np.testing.assert_allclose([a.similarity for a in answers], cosines[:, :2].max(1), atol=5e-6)
    np.testing.assert_allclose([a.label_score for a in answers], probabilities.max(1), atol=1e-5)
    assert [a.detected for a in answers] == [best < 2 for best in probabilities.argmax(1)]
    assert [a.label for a in answers] == [[*HOURGLASS, *OTHERS][best] for best in probabilities.argmax(1)]
    assert len({a.label for a in answers}) > 1


def test_softmax_classifier_equals_transformers(folders: dict[str, Path], pictures: np.ndarray) -> None:
    judge = load("classifier", folders["resnet"])
    question = Question(judge="resnet", labels=["chainsaw", "golf ball", "chute"])
    answers = [judge.answer(row, question) for row in judge.look(list(pictures))]

    model = ResNetForImageClassification.from_pretrained(folders["resnet"])
    values = ConvNextImageProcessorPil.from_pretrained(folders["resnet"])(list(pictures), return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**values).logits.softmax(1).numpy()

    np.testing.assert_allclose([a.score for a in answers], probabilities[:, [1, 2, 7]].sum(1), atol=1e-5)
    assert [a.detected for a in answers] == [best in (1, 2, 7) for best in probabilities.argmax(1)]
    assert [a.label for a in answers] == [model.config.id2label[int(best)] for best in probabilities.argmax(1)]
    assert {a.detected for a in answers} == {True, False}
    assert not answers[0].HasField("similarity")


def test_multi_label_classifier_equals_transformers(folders: dict[str, Path], pictures: np.ndarray) -> None:
    judge = load("classifier", folders["convnext"])
    question = Question(judge="convnext", labels=["hourglass", "heart"])
    answers = [judge.answer(row, question) for row in judge.look(list(pictures))]

    model = ConvNextForImageClassification.from_pretrained(folders["convnext"])
    values = ConvNextImageProcessorPil.from_pretrained(folders["convnext"])(list(pictures), return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**values).logits.sigmoid().numpy()

    np.testing.assert_allclose([a.score for a in answers], probabilities[:, 2:4].max(1), atol=1e-5)
    assert [a.detected for a in answers] == list((probabilities[:, 2:4] > 0.5).any(1))
    np.testing.assert_allclose([a.label_score for a in answers], probabilities.max(1), atol=1e-5)
    assert {a.detected for a in answers} == {True, False}


@pytest.mark.parametrize(("kind", "name"), [("clip", "clip"), ("classifier", "resnet"), ("classifier", "convnext")])
def test_a_judgement_depends_on_its_picture_alone(
    kind: str, name: str, folders: dict[str, Path], pictures: np.ndarray
) -> None:
    judge = load(kind, folders[name])
    together = judge.look(list(pictures))
    order = np.random.default_rng(5).permutation(len(pictures))
    assert np.array_equal(judge.look([pictures[i] for i in order]), together[order])
    alone = np.concatenate([judge.look([picture]) for picture in pictures])
    assert np.array_equal(alone, together)


def test_a_text_is_embedded_alike_in_every_question(folders: dict[str, Path], pictures: np.ndarray) -> None:
    seen = load("clip", folders["clip"]).look(list(pictures[:1]))[0]
    few = Question(judge="clip", labels=HOURGLASS[:1], alternatives=OTHERS[:1])
    many = Question(judge="clip", labels=HOURGLASS[:1], alternatives=OTHERS)
    first, second = load("clip", folders["clip"]), load("clip", folders["clip"])
    first.answer(seen, many)
    assert first.answer(seen, few) == second.answer(seen, few)


def test_pictures_of_other_sizes_are_resized(folders: dict[str, Path]) -> None:
    large = np.random.default_rng(6).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for kind, name in (("clip", "clip"), ("classifier", "resnet"), ("classifier", "convnext")):
        seen = load(kind, folders[name]).look([large, large[:32, :32]])
        assert len(seen) == 2
        assert not np.array_equal(seen[0], seen[1])


def test_loading_warns_of_nothing(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.WARNING):
        for kind, name in (("clip", "clip"), ("classifier", "resnet"), ("classifier", "convnext")):
            load(kind, folders[name])
    assert not caplog.records
    assert not [warning for warning in recwarn if "torchvision" in str(warning.message)]


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_pickle_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["resnet"], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeModelError) as error:
        load("classifier", folder)
    assert error.value.reason == "WEIGHTS_NOT_SAFETENSORS"


def test_weights_that_are_only_there_as_a_variant(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["resnet"], tmp_path / "variant")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    plain, variant = (load("classifier", each).look([picture]) for each in (folders["resnet"], folder))
    assert np.array_equal(plain, variant)


def test_weights_left_to_chance_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["resnet"], tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsafeModelError) as error:
        load("classifier", folder)
    assert error.value.reason == "WEIGHTS_INCOMPLETE"
    assert str(tmp_path) not in error.value.message


def test_truncated_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["resnet"], tmp_path / "truncated")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsafeModelError) as error:
        load("classifier", folder)
    assert str(tmp_path) not in error.value.message


def test_labels_are_matched_exactly(folders: dict[str, Path]) -> None:
    judge = load("classifier", folders["resnet"])

    def problems(*labels: str) -> list[tuple[str, str]]:
        return judge.problems(Question(judge="resnet", labels=labels))

    assert not problems("chain saw, chainsaw", "chain saw", "chainsaw", "golf ball", "Tinca tinca", "maillot")
    for wrong in ("ball", "saw", "Chainsaw", "chain saw,", "tank  suit"):
        assert [field for field, _ in problems(wrong)] == ["labels[0]"]
    assert "'chainsaw'" in problems("chansaw")[0][1]
    assert "several" in problems("tench", "crane")[0][1]
    assert problems("tench", "crane")[0][0] == "labels[1]"


@given(st.lists(st.text("ab ,", min_size=1), max_size=6))
def test_label_table_law(labels: list[str]) -> None:
    table = label_table(labels)
    for index, label in enumerate(labels):
        assert index in table[label]
    for text, classes in table.items():
        for index in classes:
            assert text == labels[index] or text in [part.strip() for part in labels[index].split(",")]


def test_clip_questions_are_checked(folders: dict[str, Path]) -> None:
    judge = load("clip", folders["clip"])
    fields = [field for field, _ in judge.problems(Question(labels=["x", "x"]))]
    assert fields == ["alternatives", "labels[1]"]
    too_long = Question(labels=["the hourglass"], alternatives=["the " * 30])
    assert [field for field, _ in judge.problems(too_long)] == ["alternatives[0]"]


def test_registered_kinds() -> None:
    assert kinds()["clip"].load is ClipJudge
    assert kinds()["classifier"].load is Classifier
    assert kinds()["detector"].load is Detector
    for kind in kinds().values():
        ours, *libraries = kind.provider.split(", ")
        assert ours == f"unerase {version('unerase')}"
        assert all(version(name) == release for name, release in (each.split() for each in libraries))
        assert libraries
