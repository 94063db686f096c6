"""A comparison of a model with itself is found, by name and by weights."""

import pytest

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model, Schedule, WeightFile
from unerase_backend.verdict.flaws import flaws, schedule_notes


def model(name: str, unet: str, text: str = "text") -> Model:
    files = [WeightFile(component="unet", digest=unet), WeightFile(component="text_encoder", digest=text)]
    return Model(name=name, digest=f"{unet}-{text}", files=files)


def spec(**names: str) -> AuditSpec:
    names = {"subject": "s", "reference": "r", "control": "c"} | names
    return AuditSpec(selector="clip", judge="one", second_judge="two", **names)


def manifest(*models: Model, **judges: str) -> Manifest:
    models = models or (model("s", "1"), model("r", "2"), model("c", "3"))
    return Manifest(models=models, judge_digests={"clip": "a", "one": "b", "two": "c"} | judges)


def test_models_that_differ_are_nothing_to_tell() -> None:
    assert flaws(spec(), manifest()) == []
    assert flaws(spec(control=""), manifest()) == []
    # An erasure of the text encoder leaves the reference's UNet.
    assert flaws(spec(), manifest(model("s", "2", "other"), model("r", "2"), model("c", "3"))) == []
    assert flaws(AuditSpec(), Manifest()) == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"control": "s"}, "The control is the subject itself (s)"),
        ({"reference": "s"}, "The reference is the subject itself (s)"),
        ({"control": "r"}, "The control is the reference itself (r)"),
    ],
)
def test_one_name_twice_is_told(names: dict[str, str], words: str) -> None:
    assert any(words in found for found in flaws(spec(**names), manifest()))
    assert any(words in found for found in flaws(spec(**names), Manifest())), "also where there is no manifest"


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("1", "2", "1"), "The control c has the same weights as the subject s"),
        (("1", "1", "3"), "The reference r has the same weights as the subject s"),
        (("1", "2", "2"), "The control c has the same weights as the reference r"),
    ],
)
def test_other_names_for_the_same_weights_are_told(models: tuple[str, str, str], words: str) -> None:
    (found,) = flaws(spec(), manifest(*map(model, "src", models)))
    assert words in found


def test_the_same_parts_are_the_same_weights_whatever_else_differs() -> None:
    again = model("r", "1")
    again.digest = "another tokenizer"
    (found,) = flaws(spec(), manifest(model("s", "1"), again, model("c", "3")))
    assert "The reference r has the same weights as the subject s" in found


def test_a_reference_that_the_request_assumes_is_nothing_to_tell() -> None:
    assumed = spec(reference="s")
    assumed.assume_reference = True
    assert flaws(assumed, manifest()) == []
    assumed.control = "s"
    assert len(flaws(assumed, manifest())) == 2


def test_a_control_with_the_subjects_unet_is_told() -> None:
    (found,) = flaws(spec(), manifest(model("s", "1"), model("r", "2"), model("c", "1", "other")))
    assert "The control c has the same UNet as the subject s" in found


def test_judges_that_are_one_model_are_told() -> None:
    (found,) = flaws(spec(), manifest(two="b"))
    assert found == "The second judge is the same model as the judge, so it confirms nothing."


def scheduled(name: str, unet: str, **fields: object) -> Model:
    plain = {"prediction_type": "epsilon", "timestep_spacing": "leading", "betas": "1000 betas"}
    described = model(name, unet)
    described.schedule.CopyFrom(Schedule(**plain | fields))
    return described


def test_schedules_that_differ_are_told() -> None:
    reference, control = scheduled("r", "2"), scheduled("c", "3", scheduler="PNDMScheduler")
    assert schedule_notes(spec(), manifest(scheduled("s", "1"), reference, control)) == []
    # Older manifests have no schedules.
    assert schedule_notes(spec(), manifest()) == []
    trailing = manifest(scheduled("s", "1", timestep_spacing="trailing", set_alpha_to_one=True), reference, control)
    assert schedule_notes(spec(), trailing) == [
        "The subject s was stepped by the reference's schedule, not its own: its folder names trailing timesteps that "
        "end at alpha 1, the reference's leading timesteps that end at the first timestep's alpha."
    ]
    own = spec()
    own.own_schedules = True
    (told,) = schedule_notes(own, trailing)
    assert told.startswith("The subject s was stepped by its own schedule, not the reference's: ")
    velocity = manifest(scheduled("s", "1"), reference, scheduled("c", "3", prediction_type="v_prediction", betas="v"))
    assert schedule_notes(spec(), velocity) == [
        "The control c predicts v_prediction, the reference epsilon: each was sampled by its own, and denoising errors "
        "are given as the reference's."
    ]
    betas, errors = schedule_notes(own, velocity)
    assert betas == "The control c has betas of its own: v; the reference has 1000 betas."
    assert errors.endswith("denoising errors are not comparable.")
    shift = "a rectified flow of 1000 timesteps over the sigmas of FlowMatchEulerDiscreteScheduler, shifted by"
    flow = {"prediction_type": "flow_prediction", "timestep_spacing": "", "betas": ""}
    subject, reference = (
        scheduled("s", "1", flow=f"{shift} 1.0", **flow),
        scheduled("r", "2", flow=f"{shift} 3.0", **flow),
    )
    assert schedule_notes(spec(), manifest(subject, reference)) == [
        "The subject s was stepped by the reference's schedule, not its own: its folder names "
        f"{shift} 1.0, the reference's {shift} 3.0."
    ]
