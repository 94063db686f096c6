"""What a detector's file may not be: no ONNX, cut off, in several files, with operators of a library, another one."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from classification.detectors import load, options_of
from support import onnx_models
from unerase_backend.runtime.errors import UneraseError

CLASSES = ["cat", "dog", "person"]
BOXES = 11


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.linear(tmp_path_factory.mktemp("yolo") / "model.onnx", (4 + len(CLASSES), BOXES))


def refused(path: Path, **changes: Any) -> UneraseError:
    with pytest.raises(UneraseError) as caught:
        load(path, **{"classes": CLASSES} | changes)
    return caught.value


@pytest.mark.parametrize(
    "content", [b"not a model", b"", b"\x08\x08", b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", b"ORTM"]
)
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "320n.onnx"
    path.write_bytes(content)
    assert refused(path).message == "own/detector: 320n.onnx is not an ONNX model"


def test_a_cut_off_file_is_refused(yolo: Path, tmp_path: Path) -> None:
    whole = yolo.read_bytes()
    path = tmp_path / "model.onnx"
    for length in range(1, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        assert refused(path).reason in ("WEIGHTS_UNREADABLE", "MODEL_UNEXPECTED")


def test_tensors_in_other_files_are_refused(yolo: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(4 * 192 * 77))
    model = onnx.load(yolo)
    for place in ("secret", "../secret", str(secret)):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=place)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        error = refused(path)
        assert error.reason == "WEIGHTS_ELSEWHERE"
        assert place in error.message


def test_hidden_places_of_other_files_are_found(tmp_path: Path) -> None:
    """In an attribute, in a graph within an attribute, and in a function of the file's own."""
    outside = numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="elsewhere")
    constant = helper.make_node("Constant", [], ["output"], value=outside)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("output", 1, [4])])
    branch = helper.make_node("If", ["images"], ["output"], then_branch=inner, else_branch=inner)
    function = helper.make_function("own", "Own", [], ["output"], [constant], [helper.make_opsetid("", 17)])
    for nodes, functions in (
        ([constant], []),
        ([branch], []),
        ([helper.make_node("Own", [], ["output"], domain="own")], [function]),
    ):
        graph = helper.make_graph(nodes, "model", [helper.make_tensor_value_info("images", 1, [1, 3, 8, 8])], [])
        path = tmp_path / "model.onnx"
        path.write_bytes(helper.make_model(graph, functions=functions).SerializeToString())
        assert refused(path).reason == "WEIGHTS_ELSEWHERE"


def test_an_operator_of_a_library_is_refused(tmp_path: Path) -> None:
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("PyOp", ["images"], ["output"], domain="custom.ops")],
        {},
        (("batch", 3, 8, 8), ("batch", 3)),
    )
    error = refused(path)
    assert error.reason == "OPERATOR_UNKNOWN"
    assert "'PyOp' of 'custom.ops'" in error.message


def test_a_changed_file_is_another_judge(yolo: Path, tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "model.onnx", (4 + len(CLASSES), BOXES))
    options = options_of(path)
    model = onnx.load(path)
    model.producer_version = "8.2.47"
    path.write_bytes(model.SerializeToString())
    error = refused(path, sha256=options["sha256"])
    assert error.reason == "WEIGHTS_CHANGED"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in error.message
