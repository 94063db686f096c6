"""What `unerase calibrate` asks for, and what it says where that does not do."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from support.scripted_server import AUDIT_ID, QUICK, Script, failing
from unerase import Client, UneraseError
from unerase._calibration import chosen, persistently, specs_of, withheld
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase.v1.audits_pb2 import (
    AuditSpec,
    AuditState,
    CreateAuditRequest,
    Manifest,
    ReportContent,
    WatchAuditRequest,
)
from unerase.v1.models_pb2 import Guard, Model
from unerase.v1.types_pb2 import Concept, ConceptKind, ControlKind, JudgeLabels, ModelAccess
from unerase_backend.report.parquet import render_parquet

MODELS = [
    Model(name="t/reference"),
    Model(name="t/never", base="t/reference", never_learned=["hourglass"]),
    Model(name="t/uce", base="t/reference", erased=["hourglass"]),
    Model(name="t/again", base="t/uce", erased=["hourglass"]),
    Model(name="t/moonless", base="t/reference", erased=["moon"]),
    Model(name="other/reference"),
    Model(name="other/edited", base="other/reference", erased=["hourglass"]),
]
LABELS = [JudgeLabels(judge=judge, labels=["x"]) for judge in ("clip", "first", "second")]
CONCEPTS = [Concept(name="hourglass", control="t/never", labels=LABELS), Concept(name="moon"), Concept(name="ring")]
FISH = Concept(name="fish", placebo=True, labels=LABELS, picture_digests=["a", "b"])


def test_every_model_of_the_concept_is_audited() -> None:
    concept, reference, models = chosen(MODELS, CONCEPTS, "", [])
    assert (concept, reference) == ("hourglass", "t/reference")
    assert models == ["t/again", "t/never", "t/reference", "t/uce"]
    assert chosen(MODELS, CONCEPTS, "hourglass", ["t/never", "t/reference"])[2] == ["t/never", "t/reference"]
    # Another family's models beside them, whose reference is their own.
    others = [*MODELS, Model(name="f/reference"), Model(name="f/uce", base="f/reference", erased=["hourglass"])]
    assert chosen(others, CONCEPTS, "hourglass", ["f/reference", "f/uce"])[1] == "f/reference"
    assert chosen(others, CONCEPTS, "hourglass", ["f/uce", "t/never"])[1] == reference
    assert chosen(others, CONCEPTS, "hourglass", [])[2] == models
    # A model may tell of one of the concept's words.
    worded = [*MODELS, Model(name="t/never-2", base="t/reference", never_learned=["sandglass"])]
    concepts = [Concept(name="hourglass", names=["hourglass", "sandglass"], control="t/never")]
    assert chosen(worded, concepts, "", [])[2] == ["t/again", "t/never", "t/never-2", "t/reference", "t/uce"]


def test_guards_are_left_out_of_a_calibration() -> None:
    """A model that only adds guards to another has its weights; one with weights of its own is audited by them."""
    guards = [Guard(kind="negative-prompt")]
    shop, own = (
        Model(name=name, base="t/uce", erased=["hourglass"], guards=guards, digest=name, weights_digest=weights)
        for name, weights in (("t/shop", "uce"), ("t/own", "own"))
    )
    models = [*(Model.FromString(each.SerializeToString()) for each in MODELS), shop, own]
    next(each for each in models if each.name == "t/uce").digest = "uce"
    assert chosen(models, CONCEPTS, "", [])[2] == ["t/again", "t/never", "t/own", "t/reference", "t/uce"]
    specs = specs_of(AuditSpec(), models, CONCEPTS, ["t/shop", "t/uce"])
    assert [(spec.subject, spec.access) for spec in specs] == [
        ("t/shop", ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS),
        ("t/uce", ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS),
    ]


@pytest.mark.parametrize(
    ("concepts", "concept", "said"),
    [
        ([], "", "there is none"),
        ([*CONCEPTS, Concept(name="heart", control="t/never")], "", "there are heart, hourglass"),
        (CONCEPTS, "moon", "'moon' is not"),
    ],
)
def test_without_a_model_that_never_learned_it_there_is_nothing_to_calibrate(
    concepts: list[Concept], concept: str, said: str
) -> None:
    with pytest.raises(UneraseError) as caught:
        chosen(MODELS, concepts, concept, [])
    (violation,) = caught.value.violations
    assert violation.field == "concept"
    assert said in violation.description


@pytest.fixture
def catalogued(script: Script) -> Script:
    script.models, script.concepts = MODELS, CONCEPTS
    content = ReportContent(manifest=Manifest(models=[MODELS[0]]))
    content.spec.subject = content.spec.reference = "t/reference"
    content.spec.concept, content.spec.assume_reference = "hourglass", True
    script.parquet = render_parquet(AUDIT_ID, content, [], [])
    return script


def run(address: str, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", "--out", str(out), "--address", address, *arguments])


def test_the_audits_are_asked_for_all_at_once(address: str, catalogued: Script, tmp_path: Path) -> None:
    arguments = ("--cases", "6", "--steps", "10", "--request-id", "mine", "--battery", "", "--evaluation", "a={}")
    run(address, tmp_path / "out.json", *arguments)
    requests = catalogued.seen(CreateAuditRequest)
    assert [request.spec.subject for request in requests] == ["t/again", "t/never", "t/reference", "t/uce"]
    assert [request.request_id for request in requests] == ["mine-0", "mine-1", "mine-2", "mine-3"]
    # None is waited for before all are asked for.
    kinds = [type(request) for request in catalogued.requests]
    assert WatchAuditRequest in kinds
    assert kinds.index(WatchAuditRequest) > len(kinds) - 1 - kinds[::-1].index(CreateAuditRequest)
    for request in requests:
        spec = request.spec
        assert (spec.reference, spec.concept, spec.cases, spec.steps) == ("t/reference", "hourglass", 6, 10)
        assert spec.battery.allow_incomplete
        assert [asked.name for asked in spec.battery.evaluations] == ["a"]
    assert len({request.spec.seed_base for request in requests}) == 1
    # The reference alone is its own original, and the backend says which control is another model.
    assert [request.spec.assume_reference for request in requests] == [False, False, True, False]
    assert not any(request.spec.control or request.spec.assume_control for request in requests)


def test_the_model_that_never_learned_it_can_be_withheld(address: str, catalogued: Script, tmp_path: Path) -> None:
    """Then a placebo is the control if there is one that fits, or else other concepts' prompts."""
    for concepts, kind in (
        (CONCEPTS, ControlKind.CONTROL_KIND_CONCEPT_FREE),
        ([*CONCEPTS, FISH], ControlKind.CONTROL_KIND_PLACEBO),
    ):
        catalogued.concepts = concepts
        catalogued.requests.clear()
        run(address, tmp_path / "out.json", "--without-never", "--models", "t/never", "--models", "t/reference")
        requests = catalogued.seen(CreateAuditRequest)
        assert [(each.spec.subject, each.spec.control_kind) for each in requests] == [
            ("t/never", kind),
            ("t/reference", kind),
        ]
        assert not any(each.spec.control or each.spec.placebos for each in requests)


OBJECT = ConceptKind.CONCEPT_KIND_OBJECT
FURTHER = JudgeLabels(judge="third", labels=["x"])


@pytest.mark.parametrize(
    ("placebo", "fits"),
    [
        ({}, True),
        ({"labels": [*LABELS, FURTHER]}, True),
        ({"placebo": False}, False),
        ({"kind": OBJECT}, False),
        ({"picture_digests": []}, False),
        ({"labels": LABELS[:2]}, False),
        # The hourglass has no labels for the third judge.
        ({"labels": [*LABELS[:2], FURTHER]}, False),
        ({"labels": [*LABELS[:2], JudgeLabels(judge="second")]}, False),
    ],
)
def test_a_placebo_that_cannot_be_judged_or_shown_does_not_count(placebo: dict[str, Any], fits: bool) -> None:
    fields: dict[str, Any] = {"name": "fish", "placebo": True, "labels": LABELS, "picture_digests": ["a"], **placebo}
    kind = ControlKind.CONTROL_KIND_PLACEBO if fits else ControlKind.CONTROL_KIND_CONCEPT_FREE
    assert withheld([*CONCEPTS, Concept(**fields)], AuditSpec(concept="hourglass")) == kind


def test_a_placebo_without_labels_for_a_judge_that_is_asked_for_does_not_count() -> None:
    hourglass = Concept(name="hourglass", labels=[*LABELS, FURTHER])
    for judge, kind in (
        ("second", ControlKind.CONTROL_KIND_PLACEBO),
        ("third", ControlKind.CONTROL_KIND_CONCEPT_FREE),
    ):
        assert withheld([hourglass, FISH], AuditSpec(concept="hourglass", judge=judge)) == kind


def test_a_connection_that_breaks_is_no_end(address: str, catalogued: Script, tmp_path: Path) -> None:
    """More often than one call is repeated by itself."""
    unavailable = failing(grpc.StatusCode.UNAVAILABLE, "gone for the moment")
    catalogued.failures["GetReport"] = [unavailable] * 5
    with Client(address, settings=QUICK) as client:
        with pytest.raises(UneraseError):
            client.report_parquet(AUDIT_ID)
        assert persistently(client.report_parquet, AUDIT_ID) == catalogued.parquet
        catalogued.failures["GetReport"] = [failing(grpc.StatusCode.NOT_FOUND)]
        with pytest.raises(UneraseError):
            persistently(client.report_parquet, AUDIT_ID)
        catalogued.failures["GetReport"] = [unavailable] * 9
        with pytest.raises(UneraseError):
            persistently(client.report_parquet, AUDIT_ID, patience_seconds=0)


def test_what_cannot_be_calibrated_is_said(address: str, catalogued: Script, tmp_path: Path) -> None:
    ended = run(address, tmp_path / "out.json", "--models", "t/reference")
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "there is no audit of a model that never learned it" in " ".join(ended.stderr.split())
    assert not (tmp_path / "out.json").exists()
    ended = run(address, tmp_path / "out.json", "--concept", "moon")
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "concept: must be one that some model never learned" in " ".join(ended.stderr.split())


def test_an_audit_that_failed_is_named(address: str, catalogued: Script, tmp_path: Path) -> None:
    catalogued.state = AuditState.AUDIT_STATE_FAILED
    ended = run(address, tmp_path / "out.json", "--models", "t/never")
    assert ended.exit_code == ExitCode.AUDIT_FAILED
    assert "an artefact is damaged" in " ".join(ended.stderr.split())
    assert not json.loads(ended.stdout or "{}")


def test_the_calibration_may_lie_where_the_reports_make_a_folder(
    address: str, catalogued: Script, tmp_path: Path
) -> None:
    """And where it cannot be written, nothing is audited."""
    ended = run(address, tmp_path / "missing" / "out.json", "--models", "t/never")
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "No such file or directory" in " ".join(ended.stderr.split())
    assert not catalogued.requests
    run(address, tmp_path / "build" / "out.json", "--models", "t/never", "--reports", str(tmp_path / "build" / "all"))
    assert len(catalogued.seen(CreateAuditRequest)) == 1
