"""What a report records of each judge, from the catalogue."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from safetensors.numpy import save_file

from support import onnx_models
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.classification.records import judge_record
from unerase_backend.classification.registry import kinds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return onnx_models.write_catalogue(tmp_path)


def test_a_record_of_each_kind(file: Path) -> None:
    catalogue = Catalogue.load([str(file)])
    providers = {name: kind.provider for name, kind in kinds().items()}
    records = {name: judge_record(name, catalogue, providers) for name in catalogue.judges}
    assert {name: (each.kind, each.threshold or None) for name, each in records.items()} == {
        "testbed/clip": ("clip", None),
        "testbed/judge": ("classifier", 0.5),
        "testbed/second-judge": ("classifier", 0.5),
        onnx_models.JUDGE: ("detector", pytest.approx(0.3)),
    }
    assert "torch 2." in records["testbed/clip"].provider
    assert records["testbed/clip"].provider.startswith("unerase ")
    detector = records[onnx_models.JUDGE]
    assert f"onnxruntime {onnxruntime.__version__}" in detector.provider
    content = (file.parent / "detector" / "silhouettes.onnx").read_bytes()
    assert dict(detector.weights) == {"silhouettes.onnx": hashlib.sha256(content).hexdigest()}
    assert detector.options["threshold"] == 0.3
    weights = (EMBEDDED.parent / "judge" / "model.safetensors").read_bytes()
    assert dict(records["testbed/judge"].weights) == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert {name: each.digest for name, each in records.items()} == {
        name: catalogue.judge_digest(name) for name in catalogue.judges
    }


def test_another_threshold_is_another_judge_of_the_same_weights(file: Path) -> None:
    before = Catalogue.load([str(file)])
    content = yaml.safe_load(file.read_text())
    content["judges"][onnx_models.JUDGE]["options"]["threshold"] = 0.31
    file.write_text(yaml.safe_dump(content))
    after = Catalogue.load([str(file)])
    assert before.judge_digest(onnx_models.JUDGE) != after.judge_digest(onnx_models.JUDGE)
    assert before.judge_weights(onnx_models.JUDGE) == after.judge_weights(onnx_models.JUDGE)


def test_what_lies_beside_a_detectors_file_is_no_part_of_it(file: Path) -> None:
    before = Catalogue.load([str(file)]).judge_digest(onnx_models.JUDGE)
    (file.parent / "detector" / "other.onnx").write_bytes(b"another model")
    assert Catalogue.load([str(file)]).judge_digest(onnx_models.JUDGE) == before


def test_a_classifier_of_one_label_detects_by_its_first_choice(tmp_path: Path) -> None:
    folder = tmp_path / "softmax"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "thing"}}))
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"judges": {"own/x": {"kind": "classifier", "path": "softmax"}}}))
    record = judge_record("own/x", Catalogue.load([str(tmp_path / "own.yaml")]), {})
    assert not record.HasField("threshold")
