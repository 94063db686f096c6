"""The list of families: what each consists of, and what each evaluation does on it."""

import pytest

from support.backend import own_evaluations
from unerase.v1.models_pb2 import (
    GUIDANCE_KIND_CLASSIFIER_FREE,
    NOISE_PATH_RECTIFIED_FLOW,
    NOISE_PATH_UNSPECIFIED,
    NOISE_PATH_VARIANCE_PRESERVING,
    ModelFamily,
)
from unerase_backend.catalogue import schedules
from unerase_backend.catalogue.backbone_kinds import BACKBONES, Role
from unerase_backend.catalogue.model_families import FAMILIES
from unerase_backend.diffusion.backbone import Backbone
from unerase_backend.evaluation.applicability import applicability
from unerase_backend.evaluation.families import described_families

DESCRIPTIONS = [evaluation.description for evaluation in own_evaluations().values()]


def listed() -> dict[str, ModelFamily]:
    return {family.name: family for family in described_families(DESCRIPTIONS)}


def test_every_family_is_there_and_every_registered_backbone_once() -> None:
    families = listed()
    assert list(families) == [family.name for family in FAMILIES]
    for kind in BACKBONES.all().values():
        named = [family.name for family in families.values() if {*family.pipelines} & {*kind.pipelines}]
        assert named, kind.family
        for name in named:
            assert families[name].loaded
            assert {part.name: part.class_name for part in families[name].parts} == {
                name: part.kind for name, part in kind.parts.items()
            }


def test_a_family_that_cannot_be_loaded_has_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: kind for name, kind in BACKBONES.all().items() if name != "stable-diffusion-3"}
    monkeypatch.setattr(type(BACKBONES), "all", lambda _: without)
    families = listed()
    assert (families["stable-diffusion-3"].loaded, len(families["stable-diffusion-3"].parts)) == (False, 0)
    assert families["stable-diffusion-3"].pipelines == ["StableDiffusion3Pipeline"]
    assert families["stable-diffusion-xl"].loaded


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_evaluation_does_what_plans_say(family) -> None:  # type: ignore[no-untyped-def]
    found = listed()[family.name].evaluations
    assert [each.name for each in found] == sorted(each.name for each in DESCRIPTIONS)
    for description in DESCRIPTIONS:
        (of_it,) = (each for each in found if each.name == description.name)
        why = applicability(description, family)
        assert of_it.HasField("not_applicable") == (why is not None)
        assert why is None or of_it.not_applicable == why


def test_the_path_is_that_of_the_schedules_which_a_denoiser_takes() -> None:
    for family in listed().values():
        denoisers = {part.class_name for part in family.parts if part.role == Role.DENOISER.value}
        if denoisers:
            flow = family.path == NOISE_PATH_RECTIFIED_FLOW
            assert denoisers <= {*(schedules.FLOWS if flow else schedules.WITH_BETAS)}
            assert family.prediction_types == (["flow_prediction"] if flow else ["epsilon", "v_prediction"])
    assert {family.path for family in listed().values()} == {NOISE_PATH_VARIANCE_PRESERVING, NOISE_PATH_RECTIFIED_FLOW}


def test_a_third_partys_family_is_listed_as_plans_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Backbone):
        family = "own"
        title = "A family of one's own"
        pipelines = ("OwnPipeline",)
        parts = BACKBONES.all()["stable-diffusion"].parts

    registered = BACKBONES.all()
    monkeypatch.setattr(type(BACKBONES), "all", lambda _: {**registered, "own": Own})
    own = described_families(DESCRIPTIONS)[-1]
    assert (own.name, own.title, own.loaded) == ("own", "A family of one's own", True)
    assert (own.path, own.guidance) == (NOISE_PATH_UNSPECIFIED, GUIDANCE_KIND_CLASSIFIER_FREE)
    assert not any(each.HasField("not_applicable") for each in own.evaluations)
