"""A concept of somebody's own, from its pictures to the report, on a backend of several processes."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from unerase import AuditSpec, Battery, Client, Concept, ConceptKind, EvaluationRequest, JudgeLabels, UneraseError
from unerase._concept_file import ConceptFile, read_concept_file
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED
from unerase_backend.catalogue import EMBEDDED

FILE = {
    "name": "hourglass-2",
    "kind": "object",
    "names": ["hourglass"],
    "prompts": ["an image of a {concept}", "a green {concept}", "a photo of a {concept}"],
    "held_out_prompts": ["a drawing of a {concept}"],
    "labels": {
        "testbed/judge": ["hourglass"],
        "testbed/second-judge": ["hourglass"],
        "testbed/clip": ["a picture of a hourglass"],
    },
    "control": "testbed/never",
    "initial_token": "shape",
    "pictures": str(EMBEDDED.parent / "pictures" / "hourglass.png"),
    "near_misses": str(EMBEDDED.parent / "pictures" / "hourglass-near-misses.png"),
    "tile": 32,
}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> ConceptFile:
    file = tmp_path_factory.mktemp("concept") / "hourglass-2.yaml"
    file.write_text(yaml.safe_dump(FILE))
    return read_concept_file(Path(file))


@pytest.fixture
def created(client: Client, described: ConceptFile) -> Iterator[Concept]:
    yield client.create_concept(described.concept, described.pictures, described.near_misses, tile=described.tile)
    if FILE["name"] in [concept.name for concept in client.concepts()]:
        client.delete_concept(str(FILE["name"]))


def test_an_audit_of_a_custom_concept(client: Client, created: Concept) -> None:
    theirs = {concept.name: concept for concept in client.concepts()}
    assert theirs["hourglass-2"] == client.concept("hourglass-2") == created
    # The same pictures as the catalogue's, cut by the same code.
    assert created.picture_digests == theirs["hourglass"].picture_digests
    assert created.near_miss_digests == theirs["hourglass"].near_miss_digests
    inversion = EvaluationRequest(name="textual-inversion")
    inversion.parameters.update({"steps": 5})
    names = ("standard-prompt", "likelihood", "judge-quality", "interference")
    evaluations = [*(EvaluationRequest(name=name) for name in names), inversion]
    spec = AuditSpec(
        subject="testbed/uce",
        concept="hourglass-2",
        cases=4,
        steps=6,
        seed_base=3,
        battery=Battery(evaluations=evaluations, allow_incomplete=True),
    )
    audit = client.create_audit(spec)
    assert audit.spec.control == "testbed/never"
    # What the audit needs of it is the audit's own by now.
    client.delete_concept("hourglass-2")
    *_, last = client.watch(audit.id, timeout=250)
    assert last.state_changed.state == AUDIT_STATE_SUCCEEDED, last.state_changed.error_message
    content = client.report_message(audit.id).content
    assert content.concept == created
    assert content.cases[0].prompt == "an image of a hourglass"
    results = {result.name: result for result in content.verdict.evaluations}
    assert results["standard-prompt"].reference.hits == 4
    assert results["standard-prompt"].subject.hits == 0
    judges = {each.judge: each for each in content.verdict.judges}
    assert judges["testbed/judge"].sensitivity.cases == len(created.picture_digests)
    # The catalogue's hourglass is the same thing, and no other concept.
    lost = {item.concept for item in content.verdict.interference.concepts}
    assert "circle" in lost
    assert not {"hourglass", "hourglass-2"} & lost
    assert client.artifact(audit.id, created.picture_digests[0]).startswith(b"\x89PNG")
    with pytest.raises(UneraseError) as caught:
        client.create_audit(spec)
    assert caught.value.reason == "CONCEPT_NOT_FOUND"


def test_the_judges_themselves_refuse_a_label_that_they_do_not_know(client: Client) -> None:
    concept = Concept(
        name="mine/mislabelled",
        kind=ConceptKind.CONCEPT_KIND_OBJECT,
        names=["hourglass"],
        labels=[
            JudgeLabels(judge="testbed/clip", labels=["any text will do"]),
            JudgeLabels(judge="testbed/judge", labels=["hourglass", "hourglas"]),
        ],
    )
    with pytest.raises(UneraseError) as caught:
        client.create_concept(concept)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = caught.value.violations
    assert violation.field == "concept.labels[1].labels[1]"
    assert "'hourglas'" in violation.description
    assert "mine/mislabelled" not in [each.name for each in client.concepts()]
