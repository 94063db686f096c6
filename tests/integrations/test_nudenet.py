"""NudeNet's own file as a judge, as docs/judges.md shows it, against NudeNet's own detector: `make integrations`.

The package is the user's choice; its licence is the AGPL. Nothing here is needed by the backend.
"""

import hashlib
import importlib
import shutil
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from docs.pages import blocks
from integrations.figures import figure
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.judge_check import judge_findings
from unerase_backend.classification.judges.detector import Detector
from unerase_backend.classification.records import judge_record
from unerase_backend.classification.registry import kinds, load_judge
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.runtime.artifacts import ArtifactStore

pytestmark = pytest.mark.integrations
FILE = "320n.onnx"
JUDGE = "own/nudenet"
SIDES = (320, 256, 512, 768)
SEEDS = range(12)
# NudeNet's own threshold.
THRESHOLD = 0.25


@pytest.fixture(scope="module")
def nudenet() -> ModuleType:
    """The package, which is imported only where these tests run."""
    return importlib.import_module("nudenet")


@pytest.fixture(scope="module")
def file(nudenet: ModuleType) -> Path:
    """NudeNet's own file."""
    return Path(str(nudenet.__file__)).parent / FILE


@pytest.fixture(scope="module")
def catalogue(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The catalogue of the documentation, beside NudeNet's file."""
    folder = tmp_path_factory.mktemp("nudenet")
    (folder / "nudenet").mkdir()
    shutil.copyfile(file, folder / "nudenet" / FILE)
    (block,) = [block for block in blocks("docs/judges.md") if block.text.lstrip().startswith("judges:\n  own/nudenet")]
    (folder / "catalogue.yaml").write_text(block.text)
    return Catalogue.load([str(folder / "catalogue.yaml")])


def load(catalogue: Catalogue, batch_size: int = 4) -> Detector:
    judge = load_judge(JUDGE, catalogue.judge(JUDGE), torch.device("cpu"), torch.float32, batch_size)
    assert isinstance(judge, Detector)
    return judge


def test_the_documented_file_is_the_packages(catalogue: Catalogue, file: Path) -> None:
    assert version("nudenet") == "3.4.2"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == catalogue.judge(JUDGE).options["sha256"]
    assert judge_findings(catalogue) == []
    record = judge_record(JUDGE, catalogue, {name: kind.provider for name, kind in kinds().items()})
    assert record.threshold == pytest.approx(THRESHOLD)
    assert record.weights["320n.onnx"] == catalogue.judge(JUDGE).options["sha256"]


@pytest.mark.parametrize("side", SIDES)
def test_it_sees_what_nudenet_sees(
    catalogue: Catalogue, nudenet: ModuleType, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    judge, theirs = load(catalogue), nudenet.NudeDetector()
    classes = judge._model.classes
    worst, seen, far, decided = 0.0, 0, 0.0, 0
    for seed in SEEDS:
        picture = figure(seed, side)
        # As cv2.imread hands it over: blue first.
        found = theirs.detect(np.ascontiguousarray(picture[..., ::-1]))
        boxes = judge.boxes(judge.output([picture])[0])
        ours = dict(zip(classes, judge.look([picture])[0], strict=True))
        for kind in {each["class"] for each in found}:
            highest = max(each["score"] for each in found if each["class"] == kind)
            worst, seen = max(worst, abs(highest - float(ours[kind]))), seen + 1
        # Every box of theirs is near one of ours of its class.
        for each in found:
            x, y, wide, high = each["box"]
            place = np.array([x + wide / 2, y + high / 2, wide, high]) * 320 / side
            near = boxes.boxes[boxes.classes == classes.index(each["class"])]
            far = max(far, float(np.abs(near - place).max(axis=1).min()))
        theirs_over = {each["class"] for each in found}
        ours_over = {kind for kind, score in ours.items() if score >= THRESHOLD}
        decided += theirs_over == ours_over
    with capsys.disabled():
        print(f"\n{side} px: {seen} classes, worst difference {worst:.4f}, boxes within {far:.1f} of 320 px; ", end="")
        print(f"the same classes over {THRESHOLD} in {decided} of {len(SEEDS)} pictures")
    assert seen >= 3 * len(SEEDS)
    if side == 320:
        # Nothing is resized: the same bits go in, and boxes are cut to whole pixels by NudeNet.
        assert worst == 0
        assert decided == len(SEEDS)
    assert worst < 0.05
    assert far < 8
    assert decided >= len(SEEDS) - 1


def test_it_sees_nothing_in_what_is_nobody(catalogue: Catalogue) -> None:
    draws = np.random.default_rng(3)
    noise = list(draws.integers(0, 256, (6, 320, 320, 3), dtype=np.uint8))
    plain = [np.full((320, 320, 3), tone, np.uint8) for tone in ((230, 190, 160), (90, 60, 40), (255, 255, 255))]
    labels = list(catalogue.concept("nudity").labels[JUDGE])
    judge = load(catalogue)
    for row in judge.look([*noise, *plain]):
        assert not judge.answer(row, Question(judge=JUDGE, labels=labels)).detected


def test_a_row_depends_on_its_picture_alone(catalogue: Catalogue) -> None:
    pictures = [figure(seed, 512) for seed in range(6)]
    judge = load(catalogue)
    together = judge.look(pictures)
    assert np.array_equal(judge.look(pictures[::-1])[::-1], together)
    assert np.array_equal(np.concatenate([judge.look([picture]) for picture in pictures]), together)
    assert np.array_equal(load(catalogue, batch_size=7).look(pictures), together)


@pytest.fixture
async def engine(catalogue: Catalogue, tmp_path: Path) -> AsyncIterator[ClassificationEngine]:
    settings = ClassificationSettings(artifacts=str(tmp_path))
    engine = ClassificationEngine(catalogue, ArtifactStore(str(tmp_path)), settings)
    yield engine
    engine.close()


async def test_the_concept_of_the_documentation(catalogue: Catalogue, engine: ClassificationEngine) -> None:
    shown = np.stack([figure(seed, 512) for seed in SEEDS])
    request = ClassifyRequest(questions=[catalogue.question("nudity", JUDGE)])
    answers = (await engine.Classify(request, shown)).pictures
    assert all(answer.status == SAMPLE_STATUS_SCORED for answer in answers)
    assert sum(answer.judgements[0].detected for answer in answers) >= len(SEEDS) - 1
    assert (await engine.Classify(request, shown)).pictures == answers
