"""The laws of every judge of the catalogue, one of each registered kind at least.

The embedded catalogue has one of each of our own kinds but the detector, which is made here; a package's own comes with
--catalogue FILE, which also names a concept that the judge knows.
"""

from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch

from support import onnx_models
from support.backend import CONCEPT, LocalBackend, local_backend
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.registry import Judge, broken, kinds, load_judge
from unerase_backend.runtime.pictures import decode_picture

BATCH = 4


@pytest.fixture(scope="module")
async def local(tmp_path_factory: pytest.TempPathFactory, catalogues: tuple[str, ...]) -> AsyncIterator[LocalBackend]:
    """A backend whose catalogue has a detector as well."""
    detector = onnx_models.write_catalogue(tmp_path_factory.mktemp("detector"))
    folder = tmp_path_factory.mktemp("judges")
    async with local_backend(folder, catalogues=[*catalogues, str(detector)]) as backend:
        yield backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        named = Catalogue.load(metafunc.config.getoption("--catalogue")).judges
        metafunc.parametrize("name", sorted({*named, onnx_models.JUDGE}))


def load(local: LocalBackend, name: str) -> Judge:
    return load_judge(name, local.catalogue.judge(name), torch.device("cpu"), torch.float32, BATCH)


def concept_of(local: LocalBackend, judge: str) -> str:
    """The concept of the other tests, or the first one that the judge knows and of which there are pictures."""
    known = [name for name, entry in local.catalogue.concepts.items() if entry.pictures and entry.labels.get(judge)]
    return CONCEPT if CONCEPT in known else known[0]


def shown(local: LocalBackend, name: str, count: int) -> list[np.ndarray]:
    digests = local.catalogue.concept_message(name, local.store).picture_digests[:count]
    return [decode_picture(local.store.get(digest)) for digest in digests]


def junk(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_every_kind_has_a_judge(local: LocalBackend) -> None:
    of_catalogue = {entry.kind for entry in local.catalogue.judges.values()}
    assert set(kinds()) - of_catalogue == set(), "name a catalogue with a judge of each: --catalogue FILE"
    assert not broken()


def test_what_it_sees_depends_on_the_picture_alone(name: str, local: LocalBackend) -> None:
    judge, again = load(local, name), load(local, name)
    pictures = [*shown(local, CONCEPT, 3), *shown(local, "heart", 3), *junk(3)]
    seen = judge.look(pictures)
    assert np.isfinite(seen).all()
    assert np.array_equal(again.look(pictures), seen)
    assert np.array_equal(judge.look(pictures[::-1])[::-1], seen)
    for position in (0, 4, 8):
        assert np.array_equal(judge.look([pictures[position]])[0], seen[position])


def test_it_knows_the_concept_and_nothing_else_for_it(name: str, local: LocalBackend) -> None:
    concept = concept_of(local, name)
    judge, question = load(local, name), local.catalogue.question(concept, name)
    others = [other for other in ("heart", "house", "circle") if other in local.catalogue.others(concept)]
    assert judge.problems(question) == []
    rates = {}
    for kind, pictures in (
        ("concept", shown(local, concept, 16)),
        ("other", [*shown(local, others[0], 8), *shown(local, others[1], 8)]),
    ):
        answers = [judge.answer(row, question) for row in judge.look(pictures)]
        assert all(answer.judge == name for answer in answers)
        assert all(0 <= answer.score <= 1 and 0 <= answer.label_score <= 1 for answer in answers)
        rates[kind] = np.mean([answer.detected for answer in answers])
    assert rates["concept"] >= 0.9
    assert rates["other"] <= 0.1


async def test_it_refuses_a_label_that_can_never_match_or_weighs_any_text(name: str, local: LocalBackend) -> None:
    """A classifier has a closed table of labels; a CLIP judge reads any text."""
    judge = load(local, name)
    question = Question(judge=name, labels=["an hourglass that no table lists"], alternatives=["a heart"])
    problems = judge.problems(question)
    if problems:
        assert problems[0][0] == "labels[0]"
    else:
        (row,) = judge.look(shown(local, CONCEPT, 1))
        assert 0 <= judge.answer(row, question).score <= 1


async def test_what_is_not_finite_is_unscored(name: str, local: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = concept_of(local, name)
    digests = local.catalogue.concept_message(concept, local.store).picture_digests[:3]
    request = ClassifyRequest(picture_digests=digests, questions=[local.catalogue.question(concept, name)])
    whole = (await local.classification.Classify(request)).pictures
    kind = type(local.classification._judges[name])
    look = kind.look

    def broken(self, pictures):
        seen = look(self, pictures).copy()
        seen[1, 0] = np.nan
        return seen

    monkeypatch.setattr(kind, "look", broken)
    pictures = (await local.classification.Classify(request)).pictures
    statuses = [picture.status for picture in pictures]
    assert statuses == [SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, SAMPLE_STATUS_SCORED]
    assert name in pictures[1].reason
    assert not pictures[1].judgements
    assert [pictures[0], pictures[2]] == [whole[0], whole[2]]
