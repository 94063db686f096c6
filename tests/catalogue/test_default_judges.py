"""The judges of an audit that names none: those that know the concept."""

from pathlib import Path

import pytest

from unerase_backend.catalogue.default_judges import choose_judges
from unerase_backend.catalogue.entries import ConceptEntry, JudgeEntry
from unerase_backend.runtime.errors import PreconditionError

KINDS = {
    "testbed/clip": "clip",
    "testbed/judge": "classifier",
    "testbed/second-judge": "classifier",
    "sd/nudenet": "detector",
    "sd/yolo": "detector",
    "sd/clip": "clip",
    "sd/resnet": "classifier",
    "sd/vit": "classifier",
    "sd/vqa": "blip-vqa",
}
JUDGES = {name: JudgeEntry.model_construct(kind=kind, path=Path(), options={}) for name, kind in KINDS.items()}
NOTHING = ("", "", "")


def knows(*judges: str) -> ConceptEntry:
    return ConceptEntry(kind="object", names=["tench"], labels={judge: ["tench"] for judge in judges})


def chosen(*judges: str, given: tuple[str, str, str] = NOTHING) -> tuple[str, str, str]:
    return choose_judges(JUDGES, "tench", knows(*judges), given)


def refused(field: str, *judges: str, given: tuple[str, str, str] = NOTHING) -> PreconditionError:
    with pytest.raises(PreconditionError) as caught:
        chosen(*judges, given=given)
    assert caught.value.reason == "JUDGES_MISSING"
    assert caught.value.metadata == {"concept": "tench", "field": field}
    return caught.value


def test_judges_that_do_not_know_the_concept_are_passed_over() -> None:
    assert chosen("sd/clip", "sd/resnet", "sd/vit") == ("sd/clip", "sd/resnet", "sd/vit")
    assert chosen(*KINDS) == ("testbed/clip", "testbed/judge", "testbed/second-judge")
    assert choose_judges(JUDGES) == ("testbed/clip", "testbed/judge", "testbed/second-judge")


def test_detectors_stand_in_where_classifiers_are_too_few() -> None:
    assert chosen("sd/clip", "sd/nudenet", "sd/vit") == ("sd/clip", "sd/vit", "sd/nudenet")
    assert chosen("sd/clip", "sd/yolo", "sd/nudenet") == ("sd/clip", "sd/nudenet", "sd/yolo")


def test_what_is_given_stays_and_is_not_taken_twice() -> None:
    assert chosen(*KINDS, given=("", "testbed/second-judge", "")) == (
        "testbed/clip",
        "testbed/second-judge",
        "testbed/judge",
    )
    assert chosen("sd/vqa", "sd/clip", "sd/vit", given=("", "sd/vqa", "")) == ("sd/clip", "sd/vqa", "sd/vit")
    # A detector as the judge, and the default as the second one.
    assert chosen(*KINDS, given=("", "sd/nudenet", "")) == ("testbed/clip", "sd/nudenet", "testbed/judge")
    # What is given may lack labels, or not exist: the request's checks say so.
    assert chosen(given=("a", "b", "c")) == ("a", "b", "c")


def test_too_few_are_told_with_what_to_do() -> None:
    assert refused("selector", "sd/resnet", "sd/vit").message == (
        "the concept 'tench' has labels for none where an audit needs one judge of kind clip; "
        "add labels for 'testbed/clip', 'sd/clip', or name the judges"
    )
    assert refused("second_judge", "sd/clip", "sd/vit", "sd/vqa").message == (
        "the concept 'tench' has labels for 'sd/vit' where an audit needs two judges of kind classifier or detector; "
        "add labels for 'testbed/judge', 'testbed/second-judge', 'sd/nudenet', 'sd/yolo', 'sd/resnet', "
        "or name the judges"
    )
    assert "'sd/vit'" in refused("second_judge", "sd/clip", "sd/vit", given=("", "sd/vit", "")).message
    with pytest.raises(PreconditionError, match="the catalogue needs one judge of kind clip"):
        choose_judges({})
