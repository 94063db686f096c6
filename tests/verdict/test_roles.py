"""Which models may stand for what, from what a manifest tells of them, and the words for what is assumed."""

import pytest
from google.protobuf import json_format

from unerase.v1.audits_pb2 import AuditSpec, JudgeRecord, Manifest
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, EvaluationRequest
from unerase_backend.verdict import conclude, roles, wording

from .conftest import describe

CONCEPT = Concept(name="hourglass", names=["hourglass", "sandglass"])


def _model(name: str, unet: str, text_encoder: str = "t", **fields: object) -> Model:
    """A model by the digests of its files: "ab" is the file b laid over the file a."""
    parts = {"unet": unet, "text_encoder": text_encoder, "vae": "v"}
    files = [{"component": part, "digest": digest} for part, digests in parts.items() for digest in digests]
    return json_format.ParseDict({"name": name, "digest": name, "files": files, **fields}, Model())


SUBJECT, REFERENCE = _model("subject", "rs"), _model("reference", "r")
CONTROL = _model("control", "rc", never_learned=["sandglass"])


def _problem(spec: dict[str, object], *more: Model, judges: str = "abc") -> str:
    names = {"subject": "subject", "reference": "reference", "control": "control", "concept": "hourglass"}
    asked = {**names, "selector": "clip", "judge": "first", "second_judge": "second", **spec}
    digests = dict(zip(("clip", "first", "second"), judges, strict=True))
    manifest = Manifest(models=[SUBJECT, REFERENCE, CONTROL, *more], judge_digests=digests)
    return roles.recorded_problem(json_format.ParseDict(asked, AuditSpec()), CONCEPT, manifest)


def test_what_may_be_asked_for_may_be_concluded() -> None:
    assert _problem({}) == ""
    assert _problem({"control": ""}) == ""
    assert _problem({"control": "unsaid", "assume_control": True}, _model("unsaid", "ru")) == ""
    assert _problem({"reference": "subject", "assume_reference": True}) == ""
    # A manifest that does not tell of a model says nothing against it.
    assert _problem({"control": "gone"}) == ""
    assert _problem({"control": "blank"}, Model(name="blank", never_learned=["hourglass"])) == ""


@pytest.mark.parametrize(
    ("spec", "more", "said"),
    [
        ({"control": "subject"}, [], "spec.control: is the subject itself"),
        ({"control": "alias"}, [_model("alias", "rs")], "spec.control: is the subject 'subject' under another name"),
        ({"control": "twice"}, [_model("twice", "rss")], "spec.control: is the subject 'subject' under another name"),
        ({"control": "worded"}, [_model("worded", "rs", "tw")], "spec.control: has the UNet of the subject 'subject'"),
        ({"control": "reference"}, [], "spec.control: is the reference itself"),
        ({"control": "worded"}, [_model("worded", "r", "tw")], "spec.control: has the UNet of the reference"),
        ({"control": "unsaid"}, [_model("unsaid", "ru")], "spec.control: the manifest does not say"),
        ({"reference": "subject"}, [], "spec.reference: is the subject itself"),
        (
            {"reference": "alias"},
            [_model("alias", "rs")],
            "spec.reference: is the subject 'subject' under another name",
        ),
    ],
)
def test_what_is_held_against_itself_is_named(spec: dict[str, object], more: list[Model], said: str) -> None:
    assert _problem(spec, *more).startswith(said)
    if spec.get("control") != "unsaid" and "control" in spec:
        assert _problem(spec | {"assume_control": True, "assume_reference": True}, *more).startswith(said)


@pytest.mark.parametrize("judges", ["aab", "aba", "baa"])
def test_judges_that_are_one_are_named(judges: str) -> None:
    assert _problem({}, judges=judges).startswith("spec.second_judge: two of the three judges are one")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"control": "a"}, "spec.control: is the subject itself"),
        ({"control": "b"}, "spec.control: is the reference itself"),
        ({"reference": "a"}, "spec.reference: is the subject itself"),
        ({"judge": "clip"}, "spec.second_judge: two of the three judges are one"),
        ({}, ""),
    ],
)
def test_one_name_in_two_roles_needs_no_manifest(spec: dict[str, object], said: str) -> None:
    asked = {"subject": "a", "reference": "b", "control": "c", "selector": "clip", "judge": "x", "second_judge": "y"}
    problem = roles.recorded_problem(json_format.ParseDict({**asked, **spec}, AuditSpec()), CONCEPT, Manifest())
    assert problem.startswith(said)
    assert bool(problem) == bool(said)


def test_one_digest_is_one_model_also_where_no_files_are_told() -> None:
    one, other = Model(name="a", digest="d"), Model(name="b", digest="d")
    assert roles.same_weights(one, other)
    assert roles.reference_problem(one, other).startswith("is the subject 'b' under another name")
    assert not roles.same_weights(Model(name="a"), Model(name="b"))


def test_a_text_encoder_alone_makes_no_other_denoiser() -> None:
    worded = _model("worded", "r", "tw")
    assert roles.same_denoiser(REFERENCE, worded)
    assert not roles.same_weights(REFERENCE, worded)
    assert roles.reference_problem(REFERENCE, worded) == ""


def _statement(**fields: object) -> tuple[str, list[str]]:
    names = {"subject": "s", "reference": "r", "control": "c", "concept": "hourglass"}
    spec = json_format.ParseDict({**names, **fields}, AuditSpec())
    verdict = conclude([], [describe("standard-prompt")], [EvaluationRequest(name="standard-prompt")], spec)
    return verdict.statement, list(verdict.assumptions)


def test_a_second_text_encoder_counts_where_there_is_one() -> None:
    def flow(name: str, transformer: str, second: str) -> Model:
        digests = {"transformer": transformer, "text_encoder": "t", "text_encoder_2": second, "vae": "v"}
        files = [{"component": part, "digest": digest} for part, digest in digests.items()]
        return json_format.ParseDict({"name": name, "digest": name, "files": files}, Model())

    one = flow("one", "r", "s")
    assert roles.same_weights(one, flow("two", "r", "s"))
    assert not roles.same_weights(one, flow("two", "r", "x"))
    assert roles.same_denoiser(one, flow("two", "r", "x"))
    assert not roles.same_denoiser(one, flow("two", "c", "s"))
    assert "has the transformer of the subject" in roles.control_problem(flow("two", "r", "x"), {"subject": one})


def test_the_statement_begins_with_what_was_assumed() -> None:
    plain, none = _statement()
    assert none == []
    assert plain.startswith("Incomplete: ")
    control = (
        "It is assumed that the control c never learned 'hourglass': the request says so, and the catalogue does not."
    )
    reference = "It is assumed that r is the original of s: the request says so, and the catalogue does not."
    itself = "It is assumed that s is its own original: the request compares it with itself as its reference."
    assert _statement(assume_control=True) == (f"{control} {plain}", [control])
    assert _statement(assume_reference=True) == (f"{reference} {plain}", [reference])
    assert _statement(assume_reference=True, reference="s") == (f"{itself} {plain}", [itself])
    assert _statement(assume_control=True, assume_reference=True) == (
        f"{control} {reference} {plain}",
        [control, reference],
    )
    assert wording.assumptions(AuditSpec(subject="s", reference="s", control="s")) == []
    stepped, (own,) = _statement(own_schedules=True)
    assert stepped.startswith("Subject, reference and control are each stepped by their own schedule, as the request")
    assert stepped == f"{own} {plain}"


def test_the_same_weights_with_another_threshold_are_one_judge() -> None:
    manifest = Manifest(
        judge_digests={"first": "a", "second": "b"},
        judges=[
            JudgeRecord(name="first", digest="a", weights={"320n.onnx": "w"}, threshold=0.25),
            JudgeRecord(name="second", digest="b", weights={"320n.onnx": "w"}, threshold=0.5),
        ],
    )
    spec = AuditSpec(selector="clip", judge="first", second_judge="second")
    assert roles.judges_alike(spec, manifest) == [("second_judge", "judge")]
    manifest.judges[1].weights["320n.onnx"] = "other"
    assert roles.judges_alike(spec, manifest) == []
