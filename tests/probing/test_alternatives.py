"""Alternatives: what is asked of each picture, and how far the pictures lie from one another."""

import math
from typing import Any

import numpy as np
import pytest

from support.backend import LocalBackend
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Judgement,
    Observation,
    Tensor,
)
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.probing.registry import PROBES


class Embedding:
    """Answers every question with a cosine, and gives picture i the direction i x 60 degrees; one may have none."""

    def __init__(self, recording: Any, failing: int | None = None) -> None:
        self.recording = recording
        self.failing = failing
        self.requests: list[ClassifyRequest] = []

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        self.requests.append(request)
        response = ClassifyResponse()
        for index in range(len(request.picture_digests)):
            if index == self.failing and request.embedding_judge:
                failed = PictureJudgements(status=SAMPLE_STATUS_UNSCORED, reason="the scores of clip are not finite")
                response.pictures.append(failed)
                continue
            angle = math.pi / 3 * index
            values = np.array([math.cos(angle), math.sin(angle)], "<f4").tobytes()
            answers = [Judgement(judge=question.judge, similarity=0.5) for question in request.questions]
            response.pictures.append(
                PictureJudgements(
                    status=SAMPLE_STATUS_SCORED, judgements=answers, embedding=Tensor(shape=[2], values=values)
                )
            )
        return response

    async def observe(self, unit: Unit) -> list[Observation]:
        evaluation = PROBES.all()["alternatives"]
        models = Models(self.recording.generate, self.recording.encode, self.recording.measure, self.classify)
        return await evaluation.run(unit, models, resolve_parameters(evaluation.description, unit.parameters))


async def test_distances_are_of_a_picture_to_the_others(recording: Any, local: LocalBackend) -> None:
    embedding = Embedding(recording)
    seen = await embedding.observe(local.unit("alternatives", cases=3))
    # Directions of 0, 60 and 120 degrees: cosines 1/2, 1/2 and -1/2.
    assert [each.measures["distance"] for each in seen] == pytest.approx([1.0, 0.5, 1.0], abs=1e-6)
    _, request = embedding.requests
    assert request.embedding_judge == "testbed/clip"
    names = {f"similarity:{name}" for name, entry in local.catalogue.concepts.items() if not entry.placebo}
    assert all(set(each.measures) == names | {"distance"} for each in seen)


async def test_what_cannot_be_embedded_is_unscored_and_no_ones_neighbour(recording: Any, local: LocalBackend) -> None:
    seen = await Embedding(recording, failing=1).observe(local.unit("alternatives", cases=3))
    assert [each.status for each in seen] == [SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, SAMPLE_STATUS_SCORED]
    assert "not finite" in seen[1].reason
    assert (len(seen[1].judgements), len(seen[1].measures)) == (0, 0)
    assert [seen[0].measures["distance"], seen[2].measures["distance"]] == pytest.approx([1.5, 1.5], abs=1e-6)


async def test_a_panel_without_clip_gives_labels_alone(recording: Any, local: LocalBackend) -> None:
    unit = local.unit("alternatives", cases=3)
    unit.target.selector.CopyFrom(Question(judge="another", labels=["hourglass"]))
    embedding = Embedding(recording)
    seen = await embedding.observe(unit)
    assert not any(request.embedding_judge for request in embedding.requests)
    assert all(len(each.judgements) == 3 and not each.measures for each in seen)


async def test_many_concepts_are_asked_a_few_at_a_time(recording: Any, local: LocalBackend) -> None:
    unit = local.unit("alternatives", cases=2)
    first = unit.others[0]
    for number in range(100):
        unit.others.add().CopyFrom(first)
        unit.others[-1].concept.name = f"another-{number}"
    embedding = Embedding(recording)
    seen = await embedding.observe(unit)
    assert max(len(request.questions) for request in embedding.requests) <= 64
    assert sum(name.startswith("similarity:another-") for name in seen[0].measures) == 100


async def test_the_first_draw_is_the_standard_prompts(local: LocalBackend) -> None:
    plain = await local.observe(local.unit("standard-prompt"))
    seen = await local.observe(local.unit("alternatives", parameters={"draws": 2}))
    assert [each.picture_digest for each in seen if each.variant == 0] == [each.picture_digest for each in plain]
    assert len({each.picture_digest for each in seen}) == 4
    nearest = [max(each.measures, key=lambda name: each.measures[name] - (name == "distance") * 9) for each in seen]
    # At four steps the reference's hourglasses are rough, and hourglasses most of all.
    assert nearest.count("similarity:hourglass") >= 3
