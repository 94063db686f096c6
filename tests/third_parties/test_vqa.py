"""The example of a judge that asks questions: installed as a user would, compared with transformers, held to laws."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import example
from third_parties import tiny_blip
from unerase_backend.catalogue import EMBEDDED

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "vqa_judge"


@pytest.fixture(scope="module")
def vqa_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    site = example.install(tmp_path_factory.mktemp("vqa") / "site", PACKAGE)
    paths = [str(site), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def vqa_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with the judge, and a concept with questions for it."""
    folder = tmp_path_factory.mktemp("catalogue")
    tiny_blip.save(folder / "blip")
    concept = yaml.safe_load(EMBEDDED.read_text())["concepts"]["hourglass"]
    shutil.copyfile(EMBEDDED.parent / concept.pop("pictures"), folder / "pictures.png")
    for left_out in ("near_misses", "pack"):
        concept.pop(left_out, None)
    concept |= {"labels": {**concept["labels"], tiny_blip.JUDGE: tiny_blip.QUESTIONS}, "tile": 32}
    concept["pictures"] = "pictures.png"
    judge = {"kind": "blip-vqa", "path": "blip", "options": {"threshold": 0.5}}
    file = folder / "vqa.yaml"
    file.write_text(yaml.safe_dump({"judges": {tiny_blip.JUDGE: judge}, "concepts": {"own/asked": concept}}))
    return file


def run(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_it_equals_transformers(vqa_environment: dict[str, str], vqa_catalogue: Path) -> None:
    said: dict[str, Any] = json.loads(run(vqa_environment, str(Path(tiny_blip.__file__)), str(vqa_catalogue)))
    assert said["difference"] < 1e-5
    assert said["spread"] > 0.05
    assert said["detected"]
    assert said["labels"]
    assert [field for field, _ in said["problems"]] == ["labels[0]", "alternatives"]
    assert said["findings"] == []
    assert said["options"].startswith("own/vqa: options.threshold: must be given; options.treshold: is no option of a")
    assert said["answer"] == "own/vqa: the answer 'indeed' is not one token of the judge"
    assert said["provider"].startswith("unerase-vqa 1.0, torch ")
    assert said["threshold"] == 0.5


def test_the_laws_of_judges_hold_for_it(vqa_environment: dict[str, str], vqa_catalogue: Path) -> None:
    laws = f"{tiny_blip.JUDGE} and (on_the_picture_alone or can_never_match or not_finite) or every_kind"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance/test_judges.py"]
    assert "4 passed" in run(vqa_environment, *command, "--catalogue", str(vqa_catalogue), "-k", laws)
