"""No model is its own control or reference, whatever it is called, and no judge confirms itself."""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format

from support.small_files import write_weights
from unerase._calibration import chosen, specs_of
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, CONTROL_KIND_MODEL, Concept, EvaluationDescription, JudgeLabels
from unerase_backend.catalogue import Catalogue, CustomConcept
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.verdict import roles

from ..conftest import write_catalogue

Descriptions = Mapping[str, EvaluationDescription]
Planner = Callable[..., Plan]

MODELS = {
    # One model under other names: an entry that changes nothing, the file copied, the whole pipeline copied.
    "small/never-alias": {"base": "small/never"},
    "small/never-copied": {"base": "small/reference", "unet": "copied.safetensors", "never_learned": ["hourglass"]},
    "copy/reference": {"pipeline": "copy", "resolution": 32},
    "copy/never": {"base": "copy/reference", "unet": "never.safetensors", "never_learned": ["hourglass"]},
    # The denoiser of another model, asked otherwise.
    "small/never-worded": {"base": "small/never", "text_encoder": "words.safetensors", "never_learned": ["hourglass"]},
    "small/reworded": {"base": "small/reference", "text_encoder": "words.safetensors"},
    "small/edited-worded": {"base": "small/edited", "text_encoder": "words.safetensors"},
    # Never learned it, as told of one of its words.
    "small/never-2": {"base": "small/reference", "unet": "never-2.safetensors", "never_learned": ["sandglass"]},
    "small/unsaid": {"base": "small/reference", "unet": "unsaid.safetensors"},
    "other/reference": {"pipeline": "other", "resolution": 32},
    "other/edited": {"base": "other/reference", "unet": "edited-2.safetensors"},
    "other/alias": {"base": "other/reference"},
    "other/never": {"base": "other/reference", "unet": "never-3.safetensors", "never_learned": ["hourglass"]},
}
JUDGES = {"third": {"kind": "classifier", "path": "third"}}


def _written(folder: Path) -> Path:
    path = write_catalogue(folder)
    content = yaml.safe_load(path.read_text())
    content["models"] |= MODELS
    content["judges"] |= JUDGES
    content["concepts"]["hourglass"]["labels"]["third"] = ["hourglass"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    for name in ("words", "never-2", "never-3", "unsaid", "edited-2"):
        write_weights(folder / f"{name}.safetensors", name, "text_encoder" if name == "words" else "unet")
    shutil.copy(folder / "never.safetensors", folder / "copied.safetensors")
    shutil.copytree(folder / "small", folder / "copy")
    shutil.copytree(folder / "small", folder / "other")
    write_weights(folder / "other" / "unet" / "diffusion_pytorch_model.safetensors", "other unet")
    # The weights of the second judge, with a configuration of its own.
    shutil.copytree(folder / "second", folder / "third")
    (folder / "third" / "config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    path = _written(tmp_path_factory.mktemp("roles"))
    return Catalogue.load([str(path)], embedded=Path("none"))


@pytest.fixture(scope="module")
def plan(whole: Catalogue, store: ArtifactStore, descriptions: Descriptions) -> Planner:
    def planned(**fields: object) -> Plan:
        spec = json_format.ParseDict({"subject": "small/edited", "concept": "hourglass", **fields}, AuditSpec())
        return make_plan(spec, whole, store, descriptions, lambda: 77)

    return planned


def _refused(plan: Planner, **fields: object) -> tuple[str, str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        plan(**fields)
    (violation,) = caught.value.violations
    return violation.field, caught.value.reason, violation.description


@pytest.mark.parametrize("assumed", [False, True])
@pytest.mark.parametrize(
    ("subject", "control", "said"),
    [
        ("small/edited", "small/edited", "is the subject itself"),
        ("small/edited", "small/again", "is the subject 'small/edited' under another name"),
        ("small/edited", "small/reference", "is the reference itself"),
        ("small/edited", "copy/reference", "is the reference 'small/reference' under another name"),
        ("small/edited", "small/reworded", "has the UNet of the reference 'small/reference'"),
        ("small/edited", "small/edited-worded", "has the UNet of the subject 'small/edited'"),
        ("small/never", "small/never", "is the subject itself"),
        ("small/never", "small/never-alias", "is the subject 'small/never' under another name"),
        ("small/never", "small/never-copied", "is the subject 'small/never' under another name"),
        ("small/never", "copy/never", "is the subject 'small/never' under another name"),
        ("small/never", "small/never-worded", "has the UNet of the subject 'small/never'"),
    ],
)
def test_a_control_that_is_no_other_model_is_refused(
    plan: Planner, subject: str, control: str, said: str, assumed: bool
) -> None:
    found = _refused(plan, subject=subject, control=control, assume_control=assumed)
    assert found[:2] == ("spec.control", "CONTROL_UNFIT")
    assert said in found[2]
    assert "name a model that never learned the concept" in found[2]


def test_a_control_that_may_have_learned_it_is_refused_unless_assumed(plan: Planner) -> None:
    field, reason, said = _refused(plan, control="small/unsaid")
    assert (field, reason) == ("spec.control", "CONTROL_UNKNOWN")
    assert "does not say that it never learned 'hourglass'" in said
    assert "spec.assume_control" in said
    assumed = plan(control="small/unsaid", assume_control=True)
    assert (assumed.spec.control, assumed.spec.assume_control) == ("small/unsaid", True)
    assert {unit.model for unit in assumed.units} >= {"small/unsaid"}
    assert json_format.MessageToDict(plan(**json_format.MessageToDict(assumed.spec)).spec) == json_format.MessageToDict(
        assumed.spec
    )


@pytest.mark.parametrize("control", ["small/never", "small/never-2", ""])
def test_an_assumption_that_nothing_needs_is_dropped(plan: Planner, control: str) -> None:
    spec = plan(control=control, assume_control=True, assume_reference=True).spec
    assert (spec.control, spec.assume_control, spec.assume_reference) == (control or "small/never", False, False)
    spec = plan(concept="circle", assume_control=True).spec
    assert (spec.control, spec.assume_control) == ("", False)


def test_naming_the_reference_of_a_whole_pipeline_assumes_it(plan: Planner) -> None:
    """The catalogue cannot say what it was made from; a change of a base says it by its base."""
    spec = plan(subject="other/reference", reference="small/reference").spec
    assert (spec.reference, spec.assume_reference) == ("small/reference", True)
    assert plan(**json_format.MessageToDict(spec)).spec == spec
    assert _refused(plan, subject="other/edited", reference="small/reference")[1] == "REFERENCE_UNFIT"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"subject": "small/reference", "reference": "small/reference"}, "is the subject itself"),
        ({"reference": "small/edited"}, "is the subject itself"),
        ({"reference": "small/again"}, "is the subject 'small/edited' under another name"),
        ({"subject": "other/alias"}, "is the subject 'other/alias' under another name"),
        ({"subject": "small/reference", "reference": "copy/reference"}, "is the subject 'small/reference' under"),
        ({"subject": "small/reference", "reference": "small/unsaid"}, "was itself made from the subject"),
        ({"reference": "other/reference"}, "has another base than the subject: 'other/reference'"),
        ({"reference": "other/edited"}, "has another base than the subject: 'other/reference'"),
    ],
)
def test_a_reference_that_is_no_original_is_refused_unless_assumed(
    plan: Planner, fields: dict[str, str], said: str
) -> None:
    field, reason, description = _refused(plan, **fields)
    assert (field, reason) == ("spec.reference", "REFERENCE_UNFIT")
    assert said in description
    assert "spec.assume_reference" in description
    spec = plan(**fields, assume_reference=True).spec
    assert spec.assume_reference
    assert spec.reference == fields.get("reference", spec.reference)


@pytest.mark.parametrize("assumed", [False, True])
@pytest.mark.parametrize("subject", ["small/reference", "other/reference"])
def test_a_subject_without_a_base_needs_a_reference(plan: Planner, subject: str, assumed: bool) -> None:
    field, reason, description = _refused(plan, subject=subject, assume_reference=assumed)
    assert (field, reason) == ("spec.reference", "REFERENCE_MISSING")
    assert f"{subject!r} is a whole pipeline and has no base; name the model that it was made from" in description


def test_a_reference_of_the_same_base_needs_no_assumption(plan: Planner) -> None:
    for reference in ("small/reference", "copy/reference", "small/unsaid"):
        spec = plan(reference=reference).spec
        assert (spec.reference, spec.assume_reference) == (reference, False)


def test_the_default_control_is_never_the_subject(plan: Planner) -> None:
    assert plan().spec.control == "small/never"
    # Copies of it come before, and are passed over.
    for subject in ("small/never", "small/never-alias", "small/never-copied", "small/never-worded"):
        assert plan(subject=subject).spec.control == "small/never-2"
    assert plan(subject="small/never-2").spec.control == "small/never"
    assert plan(reference="small/never").spec.control == "small/never-2"


def test_without_another_the_default_control_is_none(plan: Planner) -> None:
    # Of the copy's base no other is known, and one of another base is not taken unasked.
    planned = plan(subject="copy/never")
    assert planned.spec.control == ""
    assert plan(subject="copy/never", control="small/never-2").spec.control == "small/never-2"
    assert all(unit.control_kind != CONTROL_KIND_MODEL for unit in planned.units)


def test_a_custom_concepts_control_is_held_to_the_same(
    whole: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    def planned(subject: str, control: str) -> Plan:
        labels = [JudgeLabels(judge=judge, labels=["hourglass"]) for judge in ("clip", "first", "second")]
        concept = Concept(name="mine", kind=CONCEPT_KIND_OBJECT, names=["hourglass"], labels=labels, control=control)
        catalogue = whole.extended([CustomConcept(concept, 0)])
        return make_plan(AuditSpec(subject=subject, concept="mine"), catalogue, store, descriptions, lambda: 77)

    assert planned("small/edited", "small/never").spec.control == "small/never"
    assert planned("small/never-2", "small/never").spec.control == "small/never"
    # Of its own words, "hourglass" alone is known to be unlearned: the second is told of another.
    assert planned("small/never", "small/never").spec.control == ""
    for control in ("small/unsaid", "small/gone"):
        # As after a restart with another catalogue: what was checked when it was created holds no longer.
        with pytest.raises(InvalidRequestError) as caught:
            planned("small/edited", control)
        assert [violation.field for violation in caught.value.violations] == ["spec.control"]


def test_judges_that_are_one_are_refused(plan: Planner) -> None:
    field, reason, said = _refused(plan, judge="second", second_judge="third")
    assert (field, reason) == ("spec.second_judge", "JUDGES_ALIKE")
    assert "has the same weights as spec.judge" in said
    assert _refused(plan, selector="third", judge="first", second_judge="second")[0] == "spec.second_judge"
    assert plan(judge="first", second_judge="third").spec.second_judge == "third"


def _triples(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Every pair of subject, reference and control, of which the latter two may be left out, in a sixth of all triples.

    What is checked of a plan is said of its models two by two.
    """
    places = enumerate(names), enumerate(["", *names]), enumerate(["", *names])
    for (i, subject), (j, reference), (k, control) in itertools.product(*places):
        if (i + j + k) % 6 == 0:
            yield subject, reference, control


def test_every_pair_is_among_the_triples() -> None:
    for size in (6, 17):
        names = [str(number) for number in range(size)]
        triples = list(_triples(names))
        for one, two in ((0, 1), (0, 2), (1, 2)):
            expected = itertools.product(names if one == 0 else ["", *names], ["", *names])
            assert {(each[one], each[two]) for each in triples} == set(expected)


def test_no_accepted_plan_holds_a_model_against_itself(whole: Catalogue, plan: Planner) -> None:
    """Over every pair of the catalogue's models, with and without the assumptions."""
    names = [name for name in whole.models if whole.models[name].resolution == 32]
    accepted = 0
    battery = {"evaluations": [{"name": "standard-prompt"}]}
    for subject, reference, control in _triples(names):
        for assumed in (False, True):
            fields = {"subject": subject, "reference": reference, "control": control, "battery": battery}
            try:
                spec = plan(**fields, assume_control=assumed, assume_reference=assumed, cases=1).spec
            except InvalidRequestError:
                continue
            accepted += 1
            _assert_apart(spec, whole)
    assert accepted > 400


def _assert_apart(spec: AuditSpec, catalogue: Catalogue) -> None:
    subject, reference = (catalogue.describe_model(name) for name in (spec.subject, spec.reference))
    if spec.control:
        control = catalogue.describe_model(spec.control)
        assert not roles.same_denoiser(control, subject)
        assert not roles.same_denoiser(control, reference)
        said = {"hourglass", "sandglass"} & set(catalogue.models[spec.control].never_learned)
        assert bool(said) != spec.assume_control
    assert spec.assume_reference or not roles.same_weights(subject, reference)


@pytest.fixture(scope="module")
def testbed() -> Catalogue:
    return Catalogue.load()


def test_the_testbeds_models_are_never_held_against_themselves(
    testbed: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    names, accepted = list(testbed.models), []
    battery = Battery(preset="quick")
    for subject, reference, control in _triples(names):
        spec = AuditSpec(subject=subject, reference=reference, control=control, concept="hourglass", cases=1)
        spec.battery.CopyFrom(battery)
        try:
            accepted.append(make_plan(spec, testbed, store, descriptions, lambda: 77).spec)
        except InvalidRequestError:
            continue
    for spec in accepted:
        _assert_apart(spec, testbed)
        assert not spec.assume_control
        assert not spec.assume_reference
        if spec.reference == "testbed/reference":
            assert spec.control in ("testbed/never", "testbed/never-2")
    # The reference has no original but by assumption.
    assert {spec.subject for spec in accepted} == set(names) - {"testbed/reference"}


def test_what_calibrate_asks_for_is_accepted(
    testbed: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    models = [testbed.describe_model(name) for name in testbed.models]
    concepts = [testbed.concept_message(name, store) for name in testbed.concepts]
    _, _, names = chosen(models, concepts, "", [])
    assert set(names) == set(testbed.models)
    template = AuditSpec(battery=Battery(preset="quick"), seed_base=2505)
    specs = [
        make_plan(spec, testbed, store, descriptions, lambda: 77).spec
        for spec in specs_of(template, models, concepts, [])
    ]
    controls = {spec.subject: spec.control for spec in specs}
    assert controls == dict.fromkeys(names, "testbed/never") | {"testbed/never": "testbed/never-2"}
    assert [spec.subject for spec in specs if spec.assume_reference] == ["testbed/reference"]
    assert not any(spec.assume_control for spec in specs)
