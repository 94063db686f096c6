"""The kinds of concepts: their prompts, what is sensitive, and what a concept of each is compared with."""

from pathlib import Path

import pytest
import yaml

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.v1.types_pb2 import Concept, ConceptKind, JudgeLabels
from unerase_backend.attack.attacks.ring_a_bell import NEUTRAL
from unerase_backend.attack.attacks.textual_inversion import TEMPLATES
from unerase_backend.catalogue import Catalogue, CustomConcept, check_concept
from unerase_backend.catalogue.kinds import KINDS, PROMPTS, alike, bystanders
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

CLIP, JUDGE = "testbed/clip", "testbed/judge"
GIVEN = {"custom": {"prompts": ["{concept}, at night"]}}


def read(tmp_path: Path, **concepts: dict[str, object]) -> Catalogue:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"concepts": concepts}))
    return Catalogue.load([str(file)])


def of_kind(kind: str, name: str = "", **fields: object) -> dict[str, object]:
    labels = {CLIP: [f"a picture of {name or kind}"], JUDGE: ["house"]}
    return {"kind": kind, "names": [name or f"some {kind}"], "labels": labels, **GIVEN.get(kind, {}), **fields}


def violation(error: pytest.ExceptionInfo[InvalidRequestError]) -> tuple[str, str]:
    (found,) = error.value.violations
    return found.field, found.description


def test_every_kind_of_the_contract_is_known() -> None:
    numbers = set(ConceptKind.values()) - {0}
    assert set(KINDS.values()) == numbers
    assert set(NEUTRAL) == set(TEMPLATES) == numbers
    assert all(f"CONCEPT_KIND_{name.upper()}" == ConceptKind.Name(number) for name, number in KINDS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_concept_of_each_kind_is_read(tmp_path: Path, kind: str) -> None:
    catalogue = read(tmp_path, mine=of_kind(kind))
    message = catalogue.concept_message("mine", ArtifactStore(str(tmp_path / "store")))
    assert message.kind == KINDS[kind]
    assert tuple(message.prompts) == PROMPTS.get(kind, ("{concept}, at night",))
    assert message.sensitive == (kind == "nudity")
    # A CLIP judge has something to weigh the labels against, whatever the catalogue holds.
    assert catalogue.question("mine", CLIP).alternatives


def test_a_custom_kind_brings_its_prompts(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(tmp_path, mine=of_kind("custom", prompts=[]))
    assert violation(refused) == (
        "mine.yaml: concepts.mine.prompts",
        "must be given: the kind custom has none of its own",
    )
    message = Concept(name="mine", kind=KINDS["custom"], names=["a"])
    with pytest.raises(InvalidRequestError) as refused:
        check_concept(message, {}, {}, [])
    assert violation(refused)[0] == "concept.prompts"


def test_nudity_is_sensitive_whatever_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(tmp_path, mine=of_kind("nudity", sensitive=False))
    assert violation(refused) == (
        "mine.yaml: concepts.mine.sensitive",
        "cannot be false: pictures of the kind nudity are always blurred",
    )
    # A message cannot say "false"; what is stored and shown is sensitive.
    catalogue = Catalogue.load()
    message = Concept(name="mine/nudity", kind=KINDS["nudity"], names=["nudity"], custom=True)
    check_concept(Concept(name="mine/nudity", kind=KINDS["nudity"], names=["nudity"]), {}, {}, [])
    shown = catalogue.extended([CustomConcept(message, 0)])
    assert shown.concept_message("mine/nudity", ArtifactStore(str(tmp_path))).sensitive


def test_alternatives_are_weighed_beside_those_of_others(tmp_path: Path) -> None:
    plain, given = of_kind("nudity", "nudity"), {CLIP: ["a photo of a dressed person"]}
    own = read(tmp_path, mine={**plain, "alternatives": given}).question("mine", CLIP)
    assert own.alternatives[0] == "a photo of a dressed person"
    default = read(tmp_path, mine=plain).question("mine", CLIP)
    assert default.alternatives[0] == "a photo of a person with clothes on"
    # Without a person in the catalogue, its objects follow.
    assert "a picture of a circle" in own.alternatives
    assert own.alternatives[1:] == default.alternatives[2:]


@pytest.mark.parametrize(
    ("alternatives", "said"),
    [
        ({"testbed/second-judge": ["x"]}, "has no labels for the judge 'testbed/second-judge'"),
        ({CLIP: ["a picture of nudity"]}, "is a label for the judge"),
    ],
)
def test_bad_alternatives_are_refused(tmp_path: Path, alternatives: dict[str, list[str]], said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read(tmp_path, mine=of_kind("nudity", "nudity", alternatives=alternatives))
    assert violation(refused)[0] == "mine.yaml: concepts.mine.alternatives"
    assert said in violation(refused)[1]


def test_alternatives_of_a_message_are_named_by_its_fields() -> None:
    catalogue = Catalogue.load()
    labels = [JudgeLabels(judge=CLIP, labels=["a"], alternatives=["b", ""])]
    message = Concept(name="mine", kind=KINDS["person"], names=["a"], labels=labels)
    with pytest.raises(InvalidRequestError) as refused:
        check_concept(message, catalogue.models, catalogue.judges, [])
    assert violation(refused)[0] == "concept.labels[0].alternatives[1]"


def target(name: str, kind: str) -> Target:
    return Target(concept=Concept(name=name, kind=KINDS[kind]))


@pytest.mark.parametrize(
    ("kind", "there", "compared"),
    [
        ("object", ["object", "colour", "person"], ["object"]),
        ("colour", ["object", "colour"], ["colour"]),
        ("style", ["object"], []),
        ("person", ["object", "person", "style"], ["person"]),
        ("person", ["style", "object"], ["object"]),
        ("nudity", ["object", "nudity", "person"], ["person"]),
        ("nudity", ["nudity"], []),
        ("text", ["text", "object"], ["text"]),
        ("text", ["object"], ["object"]),
        ("custom", ["custom", "object"], ["custom"]),
    ],
)
def test_what_a_kind_is_compared_with(kind: str, there: list[str], compared: list[str]) -> None:
    concept, others = Concept(name="mine", kind=KINDS[kind]), [target(each, each) for each in there]
    assert [other.concept.name for other in alike(concept, others)] == compared


@pytest.mark.parametrize(
    ("kind", "harmed"),
    [("object", ["object"]), ("colour", ["object", "colour"]), ("nudity", ["object", "person"])],
)
def test_whom_erasing_may_harm(kind: str, harmed: list[str]) -> None:
    others = [target(each, each) for each in ("object", "colour", "person", "text")]
    assert [other.concept.name for other in bystanders(Concept(kind=KINDS[kind]), others)] == harmed


def test_two_concepts_of_nudity_are_one_thing(tmp_path: Path) -> None:
    catalogue = read(
        tmp_path,
        nudity=of_kind("nudity", "nudity"),
        bare={**of_kind("nudity", "bare skin"), "labels": {CLIP: ["bare skin"]}},
        somebody={**of_kind("person", "Ada"), "labels": {CLIP: ["a photo of Ada"]}},
    )
    assert "bare" not in catalogue.others("nudity")
    assert "somebody" in catalogue.others("nudity")
    assert list(catalogue.question("nudity", CLIP).alternatives[2:]) == ["a photo of Ada"]
