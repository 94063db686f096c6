"""The detector against onnxruntime and slow loops: what goes into a model, how its output is read, what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from classification.detectors import load
from support import onnx_models
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.classification import detections
from unerase_backend.classification.onnx_file import named_classes
from unerase_backend.runtime.errors import PreconditionError, UneraseError, UnsafeModelError

CLASSES = ["cat", "dog", "person"]
BOXES = 11


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.linear(tmp_path_factory.mktemp("yolo") / "model.onnx", (4 + len(CLASSES), BOXES))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(2).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))


def raw(path: Path, values: np.ndarray) -> np.ndarray:
    """What onnxruntime itself says, one picture at a time."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": value[None]})[0] for value in values])


def slow(output: np.ndarray, overlap: float, across: bool) -> list[tuple[float, int]]:
    """Non-maximum suppression in a loop over corners: confidences and classes of what remains."""
    kept: list[tuple[float, int, tuple[float, float, float, float]]] = []
    for box in sorted(output.T, key=lambda box: -box[4:].max()):
        x, y, w, h = (float(each) for each in box[:4])
        corners, kind = (x - w / 2, y - h / 2, x + w / 2, y + h / 2), int(box[4:].argmax())
        hidden = False
        for _, other, (left, top, right, bottom) in kept:
            wide = max(0.0, min(corners[2], right) - max(corners[0], left))
            high = max(0.0, min(corners[3], bottom) - max(corners[1], top))
            union = w * h + (right - left) * (bottom - top) - wide * high
            hidden |= (across or other == kind) and wide * high > overlap * union
        if not hidden and box[4:].max() >= detections.LEAST:
            kept.append((float(box[4:].max()), kind, corners))
    return [(confidence, kind) for confidence, kind, _ in kept]


@pytest.mark.parametrize("across", [True, False])
def test_a_detector_equals_onnxruntime_and_a_loop(yolo: Path, pictures: list[np.ndarray], across: bool) -> None:
    judge = load(yolo, classes=CLASSES, overlap=0.3, overlap_across_classes=across, threshold=0.62)
    outputs = raw(yolo, np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    seen = judge.look(pictures)
    dropped = 0
    for row, output in zip(seen, outputs, strict=True):
        kept = slow(output, 0.3, across)
        dropped += output.shape[1] - len(kept)
        expected = [max((c for c, kind in kept if kind == each), default=0.0) for each in range(len(CLASSES))]
        np.testing.assert_allclose(row, expected, atol=1e-6)
        answer = judge.answer(row, Question(judge="own/detector", labels=["cat", "person"]))
        score = max(expected[0], expected[2])
        assert answer.score == pytest.approx(score, abs=1e-6)
        assert answer.detected == (score >= 0.62)
        assert answer.label == (CLASSES[int(np.argmax(expected))] if max(expected) >= 0.62 else "")
        assert answer.label_score == pytest.approx(max(expected), abs=1e-6)
    assert dropped > 20
    assert len({judge.answer(row, Question(labels=["cat"])).detected for row in seen}) == 2


numbers = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers, numbers), max_size=12), numbers, st.booleans())
def test_suppression_equals_a_loop(boxes: list[tuple[float, ...]], overlap: float, across: bool) -> None:
    output = np.array(boxes, np.float32).reshape(-1, 6).T
    kept = detections.from_yolov8(output, overlap, across_classes=across)
    # Each box that remains has no more confident one that hides it, and each that does not has one.
    remaining = {
        tuple(box): (c, k) for box, c, k in zip(kept.boxes.tolist(), kept.confidences, kept.classes, strict=True)
    }
    assert sorted(kept.confidences, reverse=True) == list(kept.confidences)
    for box in output.T:
        best, kind = box[4:].max(), int(box[4:].argmax())
        if best < detections.LEAST or tuple(box[:4].tolist()) in remaining:
            continue
        hiding = [other for other, (c, k) in remaining.items() if c >= best and (across or k == kind)]
        shares = detections._shares(box[:4], np.array(hiding, np.float32).reshape(-1, 4))
        assert (shares > overlap).any()
    for place in range(len(kept.boxes)):
        same = (
            np.ones(len(kept.boxes) - place - 1, bool) if across else kept.classes[place + 1 :] == kept.classes[place]
        )
        assert not (detections._shares(kept.boxes[place], kept.boxes[place + 1 :]) > overlap)[same].any()


def final(path: Path, classes: float) -> Path:
    """A model that gives boxes of two corners, confidence and class, as one that has dropped what overlaps."""
    draws = np.random.default_rng(4)
    constants = {
        "weights": draws.normal(0, 0.1, (192, 6 * BOXES)).astype(np.float32),
        "shape": np.array([-1, BOXES, 6], np.int64),
        "scales": np.array([4, 4, 4, 4, 1, classes], np.float32),
        "shifts": np.array([0, 0, 4, 4, 0, -0.5], np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
        helper.make_node("Sigmoid", ["raw"], ["shares"]),
        helper.make_node("Reshape", ["shares", "shape"], ["boxes"]),
        helper.make_node("Mul", ["boxes", "scales"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shifts"], ["shifted"]),
        helper.make_node("Round", ["shifted"], ["whole"]),
        helper.make_node("Where", ["last", "whole", "shifted"], ["output"]),
    ]
    constants["last"] = np.array([0, 0, 0, 0, 0, 1], bool)
    return onnx_models.save(path, nodes, constants, (("batch", 3, 8, 8), ("batch", BOXES, 6)))


def test_boxes_that_the_model_has_chosen(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = final(tmp_path / "model.onnx", 3)
    judge = load(path, classes=CLASSES, output="detections")
    outputs = raw(path, np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    for row, output in zip(judge.look(pictures), outputs, strict=True):
        kinds = output[:, 5].astype(int)
        expected = [output[kinds == kind, 4].max(initial=0) for kind in range(3)]
        np.testing.assert_allclose(row, expected, atol=1e-6)
        boxes = judge.boxes(output).boxes
        first = output[output[:, 4].argmax()]
        np.testing.assert_allclose(boxes[0], [*(first[:2] + first[2:4]) / 2, *(first[2:4] - first[:2])], atol=1e-5)
    with pytest.raises(UnsafeModelError, match="boxes of class 3, and its entry has 3 classes, from 0"):
        load(final(tmp_path / "more.onnx", 4.4), classes=CLASSES, output="detections").look(pictures)
    with pytest.raises(UnsafeModelError, match=r"its entry expects \(pictures, 7|4 \+ 3"):
        load(path, classes=CLASSES)


@pytest.mark.parametrize(
    ("output", "activation"), [("probabilities", "Sigmoid"), ("softmax", "Identity"), ("sigmoid", "Identity")]
)
def test_a_classifiers_output(tmp_path: Path, pictures: list[np.ndarray], output: str, activation: str) -> None:
    path = onnx_models.linear(tmp_path / "model.onnx", (3,), activation=activation)
    values = raw(path, np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255).astype(float)
    expected = {
        "probabilities": values,
        "softmax": np.exp(values) / np.exp(values).sum(axis=1, keepdims=True),
        "sigmoid": 1 / (1 + np.exp(-values)),
    }[output]
    seen = load(path, classes=CLASSES, output=output).look(pictures)
    np.testing.assert_allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_forms_of_input(
    tmp_path: Path, pictures: list[np.ndarray], channels_last: bool, half: bool, batch: int | str
) -> None:
    form = {"channels_last": channels_last, "half": half}
    path = onnx_models.linear(tmp_path / "model.onnx", (3,), batch=batch, **form)
    alone = onnx_models.linear(tmp_path / "alone.onnx", (3,), batch=1, **form)
    judge = load(
        path, classes=CLASSES, output="probabilities", colours="bgr", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]
    )
    values = np.stack(pictures)[..., ::-1].astype(np.float32) / 255
    values = (values - np.array([0.1, 0.2, 0.3], np.float32)) / np.array([0.5, 0.6, 0.7], np.float32)
    values = values if channels_last else values.transpose(0, 3, 1, 2)
    expected = raw(alone, values.astype(np.float16 if half else np.float32))
    np.testing.assert_allclose(judge.look(pictures), expected, atol=2e-3 if half else 1e-6)


def test_a_row_depends_on_its_picture_alone(yolo: Path, pictures: list[np.ndarray], tmp_path: Path) -> None:
    fixed = onnx_models.linear(tmp_path / "fixed.onnx", (4 + len(CLASSES), BOXES), batch=4)
    for path in (yolo, fixed):
        judge = load(path, classes=CLASSES)
        together = judge.look(pictures)
        assert np.array_equal(judge.look(pictures[::-1])[::-1], together)
        assert np.array_equal(np.concatenate([judge.look([picture]) for picture in pictures]), together)
        assert np.array_equal(load(path, classes=CLASSES, batch_size=7).look(pictures), together)


def prepared(yolo: Path, picture: np.ndarray, **options: Any) -> np.ndarray:
    """The pixels that go into the model, (height, width, 3)."""
    values = load(yolo, classes=CLASSES, scale=1.0, **options)._prepared(picture)
    return values.transpose(1, 2, 0)


def test_pictures_of_other_proportions(yolo: Path) -> None:
    wide = np.full((4, 8, 3), 200, np.uint8)
    expected = {
        "stretch": np.full(8, 200),
        "pad": np.array([200] * 4 + [7] * 4),
        "letterbox": np.array([7] * 2 + [200] * 4 + [7] * 2),
    }
    for fit, column in expected.items():
        shown = prepared(yolo, wide, fit=fit, fill=7)
        assert np.array_equal(shown[:, 0, 0], column), fit
        tall = prepared(yolo, wide.transpose(1, 0, 2), fit=fit, fill=7)
        assert np.array_equal(tall, shown.transpose(1, 0, 2)), fit


def test_resizing(yolo: Path) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    smoothed = np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(prepared(yolo, picture, antialias=True) - smoothed).max() <= 1
    # Without smoothing, a third of the size takes the middle one of three pixels.
    assert np.array_equal(prepared(yolo, picture), picture[1::3, 1::3])


def test_classes_that_the_file_names(tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "model.onnx", (4 + 3, BOXES), names=CLASSES)
    assert load(path)._model.classes == tuple(CLASSES)
    assert load(path, classes=CLASSES)._model.classes == tuple(CLASSES)
    with pytest.raises(UnsafeModelError, match="class 0 is 'dog', the file's 'cat'"):
        load(path, classes=["dog", "cat", "person"])
    for nonsense in ("", "[", "{1: 'a'}", "[a, b]", "!!python/object/apply:os.system [true]"):
        assert named_classes({"names": nonsense}) == ()


def test_a_model_that_fails_on_the_size_is_refused(tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "model.onnx", (3,))
    model = onnx.load(path)
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "side"
    path.write_bytes(model.SerializeToString())
    assert load(path, classes=CLASSES, output="probabilities", size=8)._model.sides == (8, 8)
    with pytest.raises(UnsafeModelError, match="fails on a picture of 16 x 16 pixels") as caught:
        load(path, classes=CLASSES, output="probabilities", size=16)
    assert caught.value.reason == "MODEL_UNEXPECTED"
    with pytest.raises(UnsafeModelError, match="give the option size"):
        load(path, classes=CLASSES, output="probabilities")


def test_labels_are_classes(yolo: Path) -> None:
    judge = load(yolo, classes=CLASSES)
    assert judge.problems(Question(labels=["cat", "dog"])) == []
    assert judge.problems(Question(labels=["dog", "cats"], alternatives=["a dog"])) == [
        ("labels[1]", "the judge has no class 'cats'; near ones: 'cat'"),
        ("alternatives", "a detector's alternatives are its other classes; leave this empty"),
    ]


def test_a_detector_that_finds_nothing_has_no_first_choice(yolo: Path) -> None:
    answer = load(yolo, classes=CLASSES).answer(np.zeros(3, np.float32), Question(labels=["cat"]))
    assert (answer.score, answer.detected, answer.label) == (0, False, "")


def test_what_is_not_finite_is_passed_on(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = onnx_models.linear(tmp_path / "model.onnx", (4 + 3, BOXES))
    judge = load(path, classes=CLASSES)
    broken = judge.output(pictures[:2])
    broken[0, 0, 0] = np.nan
    assert np.isnan(detections.highest(judge.boxes(broken[0]), 3)).all()
    assert np.isfinite(detections.highest(judge.boxes(broken[1]), 3)).all()


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"file": None}, "JUDGE_OPTIONS", "options.file: must be given"),
        ({"file": "../model.onnx"}, "JUDGE_OPTIONS", "options.file"),
        ({"file": "other.onnx"}, "WEIGHTS_MISSING", "other.onnx is missing; the folder has model.onnx"),
        ({"sha256": None}, "JUDGE_OPTIONS", "options.sha256: must be given"),
        ({"sha256": "0" * 64}, "WEIGHTS_CHANGED", "model.onnx has the SHA-256"),
        ({"threshold": None}, "JUDGE_OPTIONS", "options.threshold: must be given"),
        ({"threshold": 0.0}, "JUDGE_OPTIONS", "options.threshold"),
        ({"threshold": 1.5}, "JUDGE_OPTIONS", "options.threshold"),
        ({"threshold": "0.5"}, "JUDGE_OPTIONS", "options.threshold"),
        (
            {"treshold": 0.5},
            "JUDGE_OPTIONS",
            "options.treshold: is no option of a detector; its options are file, sha256",
        ),
        ({"classes": None}, "MODEL_UNEXPECTED", "does not name its classes"),
        ({"classes": ["cat", "dog"]}, "MODEL_UNEXPECTED", "gives (pictures, 7, 11)"),
        ({"classes": ["cat", "cat", "dog"]}, "JUDGE_OPTIONS", "names 'cat' twice"),
        ({"output": "softmax"}, "MODEL_UNEXPECTED", "its entry expects (pictures, 3)"),
        ({"output": "yolov5"}, "JUDGE_OPTIONS", "options.output"),
        ({"size": 16}, "MODEL_UNEXPECTED", "takes pictures of 8 x 8 pixels"),
        ({"size": [8, 16]}, "MODEL_UNEXPECTED", "takes pictures of 8 x 8 pixels"),
        ({"std": [1.0, 0.0, 1.0]}, "JUDGE_OPTIONS", "std must be above 0"),
        ({"mean": [float("nan"), 0.0, 1.0]}, "JUDGE_OPTIONS", "options.mean.0"),
    ],
)
def test_options_are_checked(yolo: Path, changes: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(UneraseError) as caught:
        load(yolo, **{"classes": CLASSES} | changes)
    assert caught.value.reason == reason
    assert caught.value.message.startswith("own/detector: ")
    assert message in caught.value.message
    assert caught.value.metadata == {"judge": "own/detector"}
    assert str(yolo.parent) not in caught.value.message


def test_a_digest_may_be_in_capitals(yolo: Path) -> None:
    """As Windows writes it."""
    digest = hashlib.sha256(yolo.read_bytes()).hexdigest()
    assert load(yolo, classes=CLASSES, sha256=digest.upper()).problems(Question(labels=["cat"])) == []


def test_a_kind_without_options_takes_none(folders: dict[str, Path]) -> None:
    import torch

    from unerase_backend.catalogue.entries import JudgeEntry
    from unerase_backend.classification.registry import load_judge

    entry = JudgeEntry.model_construct(kind="classifier", path=folders["resnet"], options={"threshold": 0.5})
    with pytest.raises(PreconditionError, match=r"options\.threshold: judges of kind 'classifier' take no options"):
        load_judge("resnet", entry, torch.device("cpu"), torch.float32, 8)


def test_confidences_beyond_one_are_refused(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = onnx_models.linear(tmp_path / "model.onnx", (3,), activation="Identity")
    with pytest.raises(UnsafeModelError, match="must be softmax or sigmoid"):
        load(path, classes=CLASSES, output="probabilities").look([picture // 255 * 255 for picture in pictures])
