"""Every RPC under requests that were made to break it: what comes back is an answer or a refusal by the rules.

The requests come from `fuzzing`: valid ones with fields spoilt, arbitrary ones, bytes that are none. What is accepted
is given up at once, so that nothing runs on.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from support.fuzzing import FUZZ, assert_lawful, hostile, leaks
from unerase import Client
from unerase.internal.v1alpha1 import attack_pb2, classification_pb2, generation_pb2, probing_pb2
from unerase.internal.v1alpha1.trajectories_pb2 import (
    ClassifierGuidance,
    Conditioning,
    Inpainting,
    LearnedPrompt,
    Question,
    Resumption,
    Target,
    TokenIds,
    Trajectory,
    View,
)
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1 import audits_pb2, models_pb2
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, MODEL_ROLE_SUBJECT, Case, Concept, JudgeLabels, Tensor
from unerase_backend.coordinator.api.paging import token_of
from unerase_backend.coordinator.api.server import SERVICES
from unerase_backend.evaluation.parameters import parameters_struct

from .conftest import Running, small_spec

METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
# What a method does with a request that it accepts is not at stake here.
SECONDS = 1.0
MODEL = "testbed/reference"


@pytest.fixture(scope="module")
def known(client: Client) -> dict[str, str]:
    """An audit that has ended, a picture of it, and its questions' judge."""
    audit = client.create_audit(small_spec(seed_base=77, cases=1, steps=2))
    list(client.watch(audit.id, timeout=120))
    content = client.report_message(audit.id).content
    return {"audit": audit.id, "digest": content.pictures[0].digest, "concept": content.concept.picture_digests[0]}


@pytest.fixture(scope="module")
def valid(client: Client, known: dict[str, str]) -> dict[str, Message]:
    """One request of each method that would be accepted, as many fields set as can be."""
    panel = {field: Question(judge=f"testbed/{name}", labels=["hourglass"]) for field, name in _PANEL.items()}
    panel["selector"].labels[:] = ["a picture of a hourglass"]
    panel["selector"].alternatives.append("a picture of a circle")
    targets = [Target(concept=client.concept(name), **panel) for name in ("hourglass", "circle")]
    requests = {
        **_of_audits(known),
        **_of_the_catalogue(),
        **_of_generation(known, panel["judge"]),
        **_of_units(*targets),
        "Classify": classification_pb2.ClassifyRequest(
            picture_digests=[known["digest"]],
            questions=list(panel.values()),
            view=View(crop_share=0.5),
            embedding_judge="testbed/clip",
        ),
    }
    assert requests.keys() == {method.name for method in METHODS.values()}
    return requests


def _of_audits(known: dict[str, str]) -> dict[str, Message]:
    return {
        "CreateAudit": audits_pb2.CreateAuditRequest(request_id="fuzz", spec=_whole_spec()),
        "GetAudit": audits_pb2.GetAuditRequest(id=known["audit"]),
        "ListAudits": audits_pb2.ListAuditsRequest(
            page_size=3, page_token=token_of("audits", str(time.time_ns()), known["audit"])
        ),
        "WatchAudit": audits_pb2.WatchAuditRequest(id=known["audit"], after_sequence=1),
        "CancelAudit": audits_pb2.CancelAuditRequest(id=known["audit"]),
        # The audit stays for the other tests: its owner asks for it to go with one letter more.
        "DeleteAudit": audits_pb2.DeleteAuditRequest(id=known["audit"] + "0"),
        "GetReport": audits_pb2.GetReportRequest(id=known["audit"], format=audits_pb2.REPORT_FORMAT_HTML),
        "ReadArtifact": audits_pb2.ReadArtifactRequest(id=known["audit"], digest=known["digest"]),
        "ListEvaluations": audits_pb2.ListEvaluationsRequest(),
    }


def _of_the_catalogue() -> dict[str, Message]:
    return {
        "ListModels": models_pb2.ListModelsRequest(page_size=2, page_token=token_of("models", "testbed/a")),
        "GetModel": models_pb2.GetModelRequest(name=MODEL),
        "CheckModel": models_pb2.CheckModelRequest(name=MODEL),
        "ListConcepts": models_pb2.ListConceptsRequest(page_size=2, page_token=token_of("concepts", "a")),
        "CreateConcept": models_pb2.CreateConceptRequest(concept=_new_concept()),
        "GetConcept": models_pb2.GetConceptRequest(name="hourglass"),
        "DeleteConcept": models_pb2.DeleteConceptRequest(name="hourglass"),
    }


def _of_generation(known: dict[str, str], question: Question) -> dict[str, Message]:
    return {
        "Generate": generation_pb2.GenerateRequest(
            model=MODEL,
            trajectories=_trajectories(known["concept"]),
            questions=[question],
            pictures=True,
            latents=True,
            changes=[
                generation_pb2.ModelChange(interpolation=generation_pb2.Interpolation(model="testbed/uce", share=0.5)),
            ],
        ),
        "Encode": generation_pb2.EncodeRequest(model=MODEL, prompts=["a hourglass", "a circle"]),
        "MeasureDenoising": generation_pb2.MeasureDenoisingRequest(
            model=MODEL,
            picture_digests=[known["concept"]],
            prompts=["", "a hourglass"],
            timesteps=[1, 500],
            noise_seed=1,
        ),
        "DescribeGeneration": generation_pb2.DescribeGenerationRequest(),
        "DescribeClassification": classification_pb2.DescribeClassificationRequest(),
    }


def _trajectories(picture_digest: str) -> list[Trajectory]:
    """One of each kind of conditioning, and each with another of what a trajectory may hold."""
    conditionings = [
        Conditioning(text="a hourglass"),
        Conditioning(token_ids=TokenIds(ids=[1, 2, 3])),
        Conditioning(
            learned=LearnedPrompt(
                text="a picture of a <new>",
                placeholder="<new>",
                embedding=Tensor(shape=[1, 64], values=b"\x00" * 256),
            )
        ),
        Conditioning(embedding=Tensor(shape=[24, 64], values=b"\x00" * 4 * 24 * 64)),
    ]
    trajectories = [
        Trajectory(
            conditioning=conditioning, guidance_scale=3.0, latent_seed=1, noise_seed=2, steps=3, variance_scale=1.0
        )
        for conditioning in conditionings
    ]
    trajectories[0].eta = 1.0
    trajectories[1].inpainting.CopyFrom(Inpainting(picture_digest=picture_digest, mask_share=0.5))
    trajectories[2].resumption.CopyFrom(
        Resumption(latents=Tensor(shape=[4, 8, 8], values=b"\x00" * 4 * 4 * 64), step=1)
    )
    trajectories[2].stop_step = 2
    trajectories[3].classifier_guidance.CopyFrom(ClassifierGuidance(classifier_digest="0" * 64, scale=1.0))
    return trajectories


def _of_units(target: Target, other: Target) -> dict[str, Message]:
    unit = Unit(
        id="standard-prompt/subject/0",
        evaluation="standard-prompt",
        role=MODEL_ROLE_SUBJECT,
        model="testbed/uce",
        reference=MODEL,
        target=target,
        others=[other],
        cases=[
            Case(index=0, prompt="a hourglass", latent_seed=1, held_out_prompt="one hourglass", held_out_latent_seed=2)
        ],
        parameters=parameters_struct({}),
        steps=3,
        guidance_scale=3.0,
        seed_base=5,
    )
    attacked = Unit()
    attacked.CopyFrom(unit)
    attacked.id, attacked.evaluation = "textual-inversion/subject/0", "textual-inversion"
    attacked.parameters.CopyFrom(parameters_struct({"steps": 1}))
    return {
        "Probe": probing_pb2.ProbeRequest(unit=unit),
        "ListProbes": probing_pb2.ListProbesRequest(),
        "Attack": attack_pb2.AttackRequest(unit=attacked),
        "ListAttacks": attack_pb2.ListAttacksRequest(),
    }


_PANEL = {"selector": "clip", "judge": "judge", "second_judge": "second-judge"}


def _whole_spec() -> audits_pb2.AuditSpec:
    spec = small_spec(cases=1, steps=2)
    spec.reference, spec.control = MODEL, "testbed/never"
    spec.selector, spec.judge, spec.second_judge = (f"testbed/{name}" for name in _PANEL.values())
    spec.guidance_scale = 3.0
    spec.tolerances.excess = 0.1
    return spec


def _new_concept() -> models_pb2.NewConcept:
    concept = Concept(
        name="fuzz/concept",
        kind=CONCEPT_KIND_OBJECT,
        names=["hourglass"],
        prompts=["a {concept}"],
        held_out_prompts=["one {concept}"],
        labels=[JudgeLabels(judge="testbed/judge", labels=["hourglass"])],
        control="testbed/never",
        initial_token="shape",
    )
    return models_pb2.NewConcept(request_id="fuzz", concept=concept)


@pytest.fixture(scope="module")
def unharmed(backend: Running) -> Iterator[None]:
    """Every process that is there before is there afterwards, and answers."""
    rooms = ("coordinator", "generation", "classification", "probing", "attack")
    before = {room: [process.pid for process in backend.replicas(room)] for room in rooms}
    yield
    assert {room: [process.pid for process in backend.replicas(room)] for room in rooms} == before


def _calls(channel: grpc.Channel, path: str, method: Any) -> Callable[[bytes], Any]:
    """Return what makes one call: of a stream the first few answers, of whatever was accepted no more."""

    def call(request: bytes) -> Any:
        if method.client_streaming:
            return channel.stream_unary(f"/{path}")(iter([request]), timeout=30)
        if not method.server_streaming:
            return channel.unary_unary(f"/{path}")(request, timeout=30)
        answers = channel.unary_stream(f"/{path}")(request, timeout=SECONDS)
        try:
            return [answer for answer, _ in zip(answers, range(4), strict=False)]
        finally:
            answers.cancel()

    return call


@pytest.mark.parametrize("path", METHODS, ids=[path.rpartition(".")[2] for path in METHODS])
@pytest.mark.usefixtures("unharmed")
def test_every_method_refuses_by_the_rules(
    channel: grpc.Channel, client: Client, valid: dict[str, Message], path: str
) -> None:
    method = METHODS[path]
    call = _calls(channel, path, method)

    @FUZZ
    @given(request=hostile(valid[method.name]))
    def refuse(request: bytes) -> None:
        answers: list[Any] = []
        assert_lawful(lambda: answers.append(call(request)))
        if answers and method.name == "CreateAudit":
            client.cancel(audits_pb2.Audit.FromString(answers[0]).id)
        if answers and method.name == "CreateConcept":
            client.delete_concept(Concept.FromString(answers[0]).name)

    refuse()
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_refuses_by_the_rules(channel: grpc.Channel, method: str) -> None:
    open_ = channel.unary_unary if method == "Check" else channel.unary_stream
    call = open_(f"/grpc.health.v1.Health/{method}")

    def answered(request: bytes) -> None:
        if method == "Check":
            call(request, timeout=10)
        else:
            watch = call(request, timeout=10)
            next(watch)
            watch.cancel()

    @FUZZ
    @given(request=hostile(health_pb2.HealthCheckRequest(service="unerase.v1.AuditService")))
    def refuse(request: bytes) -> None:
        assert_lawful(lambda: answered(request))

    refuse()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_refuses_by_the_rules(channel: grpc.Channel, version: str) -> None:
    reflect = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    valid = reflection_pb2.ServerReflectionRequest(host="", file_containing_symbol="unerase.v1.AuditService")

    def reflected(requests: list[bytes]) -> None:
        for answer in reflect(iter(requests), timeout=10):
            error = reflection_pb2.ServerReflectionResponse.FromString(answer).error_response
            assert not leaks(error.error_message)

    @FUZZ
    @given(requests=st.lists(hostile(valid), max_size=3))
    def refuse(requests: list[bytes]) -> None:
        assert_lawful(lambda: reflected(requests))

    refuse()


def test_an_upload_in_any_order_is_refused_by_the_rules(channel: grpc.Channel, client: Client) -> None:
    create = channel.stream_unary("/unerase.v1.ModelService/CreateConcept")
    piece = models_pb2.CreateConceptRequest(
        picture=models_pb2.PictureChunk(chunk=b"\x89PNG\r\n\x1a\n", last=True, near_miss=True, tile=32)
    )
    described = models_pb2.CreateConceptRequest(concept=_new_concept())
    part = hostile(piece) | hostile(described) | st.just(described.SerializeToString())

    @FUZZ
    @given(requests=st.lists(part, max_size=6))
    def refuse(requests: list[bytes]) -> None:
        answers: list[bytes] = []
        assert_lawful(lambda: answers.append(create(iter(requests), timeout=30)))
        for answer in answers:
            client.delete_concept(Concept.FromString(answer).name)

    refuse()
