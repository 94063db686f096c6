"""Small ONNX models made by hand: one that knows the testbed's objects by their silhouettes, and linear ones."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from unerase_backend.catalogue import EMBEDDED, Catalogue, sheets
from unerase_backend.runtime.pictures import decode_picture

JUDGE, CONCEPT = "own/detector", "own/hourglass"
SIDE = 32
MARGIN = 3
SHARPNESS = 60.0
OPSET = 17


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shapes: tuple[Sequence[Any], Sequence[Any]],
    *,
    kind: int = TensorProto.FLOAT,
    names: Sequence[str] = (),
) -> Path:
    """Write a model from "images" to "output", whose shapes are given; `names` of classes are put into its metadata."""
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info("images", kind, list(shapes[0]))],
        [helper.make_tensor_value_info("output", kind, list(shapes[1]))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    if names:
        helper.set_model_props(model, {"names": str(dict(enumerate(names)))})
    path.write_bytes(model.SerializeToString())
    return path


def linear(
    path: Path,
    outputs: tuple[int, ...],
    *,
    side: int = 8,
    batch: int | str = "batch",
    activation: str = "Sigmoid",
    channels_last: bool = False,
    half: bool = False,
    names: Sequence[str] = (),
) -> Path:
    """Write a model whose outputs are random linear functions of the pixels, in the shape `outputs`."""
    draws = np.random.default_rng(1)
    kind, numpy_kind = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = draws.normal(0, 0.1, (3 * side * side, int(np.prod(outputs)))).astype(numpy_kind)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
        helper.make_node(activation, ["raw"], ["values"]),
        helper.make_node("Reshape", ["values", "shape"], ["output"]),
    ]
    shape = (side, side, 3) if channels_last else (3, side, side)
    constants = {"weights": weights, "shape": np.array([-1, *outputs], np.int64)}
    return save(path, nodes, constants, ((batch, *shape), (batch, *outputs)), kind=kind, names=names)


def silhouettes(path: Path, *, objects: Sequence[str] = ()) -> list[str]:
    """Write a detector in YOLOv8's layout of the testbed's objects, and return its classes in order.

    It compares the picture's silhouette with each object's mean silhouette (the cosine) at 7 x 7 places, each of which
    is a box, and takes a softmax over the objects.
    """
    known = {name: entry for name, entry in Catalogue.load().concepts.items() if entry.kind == "object"}
    classes = list(objects) or list(known)
    templates = []
    for name in classes:
        sheet = known[name].pictures
        assert sheet is not None
        pictures = [decode_picture(tile) for tile in sheets.cut(sheet, SIDE)]
        mean = np.mean([np.clip(3 * (1 - picture.min(axis=2) / 255) - 0.45, 0, 1) for picture in pictures], axis=0)
        templates.append((mean / np.linalg.norm(mean))[None])
    places = 2 * MARGIN + 1
    centres = np.arange(places, dtype=np.float32) - MARGIN + SIDE / 2
    boxes = np.stack([np.tile(centres, places), np.repeat(centres, places), *np.full((2, places**2), 26.0)])
    constants = {
        "axis": np.array([1], np.int64),
        "three": np.array(3, np.float32),
        "offset": np.array(2.55, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "least": np.array(1e-6, np.float32),
        "sharpness": np.array(SHARPNESS, np.float32),
        "templates": np.stack(templates).astype(np.float32),
        "boxes": boxes[None].astype(np.float32),
        "rows": np.array([0, len(classes), places**2], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMin", ["images"], ["darkest"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["darkest", "three"], ["tripled"]),
        helper.make_node("Sub", ["offset", "tripled"], ["inverted"]),
        helper.make_node("Clip", ["inverted", "zero", "one"], ["silhouette"]),
        helper.make_node("ReduceL2", ["silhouette"], ["length"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Max", ["length", "least"], ["whole"]),
        helper.make_node("Div", ["silhouette", "whole"], ["unit"]),
        helper.make_node("Conv", ["unit", "templates"], ["cosines"], pads=[MARGIN] * 4),
        helper.make_node("Mul", ["cosines", "sharpness"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
        helper.make_node("Mul", ["shares", "cosines"], ["weighed"]),
        helper.make_node("Clip", ["weighed", "zero", "one"], ["confidences"]),
        helper.make_node("Reshape", ["confidences", "rows"], ["classes"]),
        # The boxes for as many pictures as there are.
        helper.make_node("ReduceSum", ["classes", "axis"], ["sums"], keepdims=1),
        helper.make_node("Mul", ["sums", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes"], ["placed"]),
        helper.make_node("Concat", ["placed", "classes"], ["output"], axis=1),
    ]
    shapes = (("batch", 3, "height", "width"), ("batch", 4 + len(classes), places**2))
    save(path, nodes, constants, shapes)
    return classes


def write_catalogue(folder: Path) -> Path:
    """Write a catalogue with the detector of `silhouettes`, and a concept that it knows; return the file."""
    (folder / "detector").mkdir()
    model = folder / "detector" / "silhouettes.onnx"
    classes = silhouettes(model)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    options = {"file": model.name, "sha256": digest, "threshold": 0.3, "classes": classes, "size": SIDE}
    concept = yaml.safe_load(EMBEDDED.read_text())["concepts"]["hourglass"]
    concept.pop("pack", None)
    for sheet in ("pictures", "near_misses"):
        shutil.copyfile(EMBEDDED.parent / concept[sheet], folder / f"{sheet}.png")
        concept[sheet] = f"{sheet}.png"
    concept |= {"labels": {**concept["labels"], JUDGE: ["hourglass"]}, "tile": SIDE}
    judge = {"kind": "detector", "path": "detector", "options": options}
    file = folder / "detector.yaml"
    file.write_text(yaml.safe_dump({"judges": {JUDGE: judge}, "concepts": {CONCEPT: concept}}))
    return file
