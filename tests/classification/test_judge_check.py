"""Judges are checked without their weights: kinds, files, labels, texts; the judges themselves agree."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support import onnx_models
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.file_findings import Finding, problems
from unerase_backend.classification.detector_options import DetectorOptions
from unerase_backend.classification.judge_check import judge_findings, own_kinds
from unerase_backend.classification.judges.classifier import Classifier
from unerase_backend.classification.judges.clip import ClipJudge
from unerase_backend.classification.registry import kinds

LONG = "a picture of " + " and ".join(["a hourglass"] * 30)
Check = Callable[..., list[Finding]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks a catalogue with copies of the testbed's judge and CLIP, and what a test adds."""
    for name in ("judge", "clip"):
        shutil.copytree(EMBEDDED.parent / name, tmp_path / name)

    def checked(judges: dict[str, Any] | None = None, **labels: list[str]) -> list[Finding]:
        content = {
            "judges": judges
            or {"one": {"kind": "classifier", "path": "judge"}, "two": {"kind": "clip", "path": "clip"}},
            "concepts": {
                "hourglass": {"kind": "object", "names": ["hourglass"], "labels": labels},
                "ring": {"kind": "object", "names": ["ring"], "labels": {"two": ["a picture of a ring"]}},
            },
        }
        if judges:
            content.pop("concepts")
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(content))
        return problems(judge_findings(Catalogue.load([str(file)], embedded=Path("none"))))

    return checked


def test_nothing_is_wrong_with_the_testbed(check: Check) -> None:
    assert judge_findings(Catalogue.load()) == []
    assert check(one=["hourglass"], two=["a picture of a hourglass"]) == []


def test_own_kinds_are_those_that_are_registered() -> None:
    assert own_kinds() == {name for name, kind in kinds().items() if kind.module.startswith("unerase_backend.")}
    assert {name: kind.options for name, kind in kinds().items() if kind.options} == {"detector": DetectorOptions}


def test_an_unknown_kind_is_named_with_those_there_are(check: Check) -> None:
    (found,) = check({"own/x": {"kind": "oracle", "path": "judge"}})
    assert (found.place, found.reason) == ("own.yaml: judges.own/x.kind", "JUDGE_KIND_UNKNOWN")
    assert "no kind of judge 'oracle', but classifier, clip, detector" in found.description


def test_a_label_that_the_classifier_lacks_is_found_as_the_judge_finds_it(check: Check) -> None:
    judge = Classifier(EMBEDDED.parent / "judge", torch.device("cpu"), torch.float32, 1)
    labels = ["hourglass", "hour glass", "sandglass"]
    expected = [description for _, description in judge.problems(Question(labels=labels))]
    assert [each.description for each in check(one=labels)] == expected
    assert "near ones: 'hourglass'" in expected[0]
    assert {each.place for each in check(one=labels)} == {"own.yaml: concepts.hourglass.labels.one"}


def test_a_text_that_clip_does_not_read_is_found_as_the_judge_finds_it(check: Check) -> None:
    judge = ClipJudge(EMBEDDED.parent / "clip", torch.device("cpu"), torch.float32, 1)
    question = Question(labels=[LONG, "a hourglass"], alternatives=["a ring"])
    assert [field for field, _ in judge.problems(question)] == ["labels[0]"]
    (found,) = check(two=[LONG, "a hourglass"])
    assert (found.place, found.reason) == ("own.yaml: concepts.hourglass.labels.two", "LABEL_TOO_LONG")


@pytest.mark.parametrize("length", range(60, 90, 3))
def test_the_reach_of_clip_is_the_judges_to_the_token(check: Check, length: int) -> None:
    judge = ClipJudge(EMBEDDED.parent / "clip", torch.device("cpu"), torch.float32, 1)
    text = " ".join(["ring"] * length)
    refused = bool(judge.problems(Question(labels=[text], alternatives=["a picture of a ring"])))
    assert bool(check(two=[text])) == refused


def test_a_concept_without_others_is_noted(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "alone.yaml"
    concept = {"kind": "style", "names": ["x"], "labels": {"two": ["in the style of x"]}}
    file.write_text(yaml.safe_dump({"judges": {"two": {"kind": "clip", "path": "clip"}}, "concepts": {"x": concept}}))
    (found,) = judge_findings(Catalogue.load([str(file)], embedded=Path("none")))
    assert (found.reason, found.problem) == ("LABELS_ALONE", False)


@pytest.mark.parametrize(
    ("judge", "missing", "reason", "said"),
    [
        ("judge", "config.json", "JUDGE_INCOMPLETE", "has no config.json"),
        ("judge", "preprocessor_config.json", "JUDGE_INCOMPLETE", "how a picture is scaled"),
        ("judge", "model.safetensors", "WEIGHTS_MISSING", "no weights"),
        ("clip", "tokenizer.json", "JUDGE_INCOMPLETE", "no tokenizer"),
    ],
)
def test_a_missing_file_is_named(
    check: Check, tmp_path: Path, judge: str, missing: str, reason: str, said: str
) -> None:
    (tmp_path / judge / missing).unlink()
    (found,) = check()
    place = f"own.yaml: judges.{'one' if judge == 'judge' else 'two'}.path"
    assert (found.place, found.reason) == (place, reason)
    assert said in found.description


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "config.json is not JSON"),
        ("[]", "config.json is not a JSON object"),
        (json.dumps({"id2label": {"1": "a"}}), "id2label"),
        ("[" * 100_000, "config.json is not JSON"),
    ],
)
def test_a_damaged_configuration_is_named(check: Check, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "judge" / "config.json").write_text(content)
    (found,) = check()
    assert said in found.description


def test_weights_that_can_carry_code_are_named(check: Check, tmp_path: Path) -> None:
    (tmp_path / "judge" / "model.safetensors").rename(tmp_path / "judge" / "pytorch_model.bin")
    (found,) = check()
    assert found.reason == "WEIGHTS_NOT_SAFETENSORS"
    assert "pytorch_model.bin" in found.description


def test_a_link_that_leads_out_is_found(check: Check, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.json"
    (tmp_path / "judge" / "config.json").rename(outside)
    (tmp_path / "judge" / "config.json").symlink_to(outside)
    (found,) = check()
    assert found.reason == "PATH_ESCAPES"


def test_what_the_hub_has_not_sent_yet_is_noted(check: Check, tmp_path: Path) -> None:
    entry = {"kind": "clip", "hub": "org/none", "revision": "0" * 40}
    file = tmp_path / "hub.yaml"
    file.write_text(yaml.safe_dump({"hub_organisations": ["org"], "judges": {"far": entry}}))
    (found,) = judge_findings(Catalogue.load([str(file)], embedded=Path("none")))
    assert (found.reason, found.problem) == ("NOT_FETCHED", False)


def test_what_is_no_detector_is_named_with_what_its_entry_lacks(check: Check, tmp_path: Path) -> None:
    (tmp_path / "nudenet").mkdir()
    (tmp_path / "nudenet" / "320n.onnx").write_text("not a model")
    found = check({"own/nudenet": {"kind": "detector", "path": "nudenet"}})
    assert [(each.place, each.description) for each in found] == [
        *((f"own.yaml: judges.own/nudenet.options.{key}", "must be given") for key in ("file", "sha256", "threshold")),
        ("own.yaml: judges.own/nudenet.path", "320n.onnx is not an ONNX model"),
    ]


def test_a_detector_and_the_labels_for_it(check: Check, tmp_path: Path) -> None:
    (tmp_path / "detector").mkdir()
    onnx_models.linear(tmp_path / "detector" / "model.onnx", (7, 5))
    *_, told = check({"own/x": {"kind": "detector", "path": "detector"}})
    digest = hashlib.sha256((tmp_path / "detector" / "model.onnx").read_bytes()).hexdigest()
    assert (told.place, told.description) == ("own.yaml: judges.own/x.options.sha256", f"of model.onnx is {digest}")
    options = {"file": "model.onnx", "sha256": digest, "threshold": 0.5, "classes": ["cat", "dog", "person"]}
    judges = {"own/x": {"kind": "detector", "path": "detector", "options": options}}
    assert check(judges) == []
    options["sha256"] = "0" * 64
    assert [each.place for each in check(judges)] == ["own.yaml: judges.own/x.options.sha256"]
    options |= {"sha256": digest, "classes": ["cat", "dog"]}
    assert [each.reason for each in check(judges)] == ["MODEL_UNEXPECTED"]
    (tmp_path / "more").mkdir()
    file = onnx_models.write_catalogue(tmp_path / "more")
    known = yaml.safe_load(file.read_text())
    assert judge_findings(Catalogue.load([str(file)])) == []
    known["concepts"][onnx_models.CONCEPT]["labels"][onnx_models.JUDGE].append("hour glass")
    file.write_text(yaml.safe_dump(known))
    (found,) = judge_findings(Catalogue.load([str(file)]))
    assert found.place == f"detector.yaml: concepts.{onnx_models.CONCEPT}.labels.{onnx_models.JUDGE}"
    assert found.description == "the judge has no class 'hour glass'; near ones: 'hourglass'"


def test_options_of_a_kind_that_takes_none(check: Check) -> None:
    (found,) = check({"own/x": {"kind": "classifier", "path": "judge", "options": {"threshold": 0.5}}})
    assert found.place == "own.yaml: judges.own/x.options.threshold"
    assert found.description == "judges of kind 'classifier' take no options"


def test_it_imports_no_torch() -> None:
    code = (
        "import sys; from unerase_backend.checking.at_start import check_catalogues; check_catalogues(()); "
        "sys.exit(not {'torch', 'ray', 'diffusers'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("judge", "parameters", "place", "said"),
    [
        ("nobody", {}, "guards[0].judge", "there is no judge 'nobody'; there are"),
        ("testbed/judge", {"labels": ["hour glass"]}, "guards[0].labels", "the judge has no label 'hour glass'"),
        ("testbed/clip", {}, "guards[0].alternatives", "must be given"),
        ("testbed/clip", {"labels": [LONG], "alternatives": ["a ring"]}, "guards[0].labels", "more than the"),
        ("testbed/judge", {"alternatives": ["ring"]}, "guards[0].alternatives", "must be left out"),
        ("testbed/judge", {}, "", ""),
    ],
)
def test_a_judge_by_which_a_guard_withholds_is_checked(
    tmp_path: Path, judge: str, parameters: dict[str, Any], place: str, said: str
) -> None:
    guard = {"kind": "judge-checker", "judge": judge, "labels": ["hourglass"], **parameters}
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"models": {"own/shop": {"base": "testbed/reference", "guards": [guard]}}}))
    found = [(each.place, each.description) for each in judge_findings(Catalogue.load([str(file)]))]
    assert [place for place, _ in found] == ([f"own.yaml: models.own/shop.{place}"] if place else [])
    assert all(said in description for _, description in found)
