"""Which family a model is of, by its configurations, and what is written of each."""

import inspect
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import yaml

from unerase.v1.types_pb2 import (
    MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE,
    MODEL_CAPABILITY_GUIDANCE_SCALE,
    MODEL_CAPABILITY_UNGUIDED_ROW,
)
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.backbone_kinds import BACKBONES
from unerase_backend.catalogue.model_families import (
    FAMILIES,
    STABLE_DIFFUSION,
    Guidance,
    family_of_folder,
    family_of_model,
)

NAMES = [family.name for family in FAMILIES]


def folder_of(folder: Path, pipeline_class: object, **transformer: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline_class}))
    if transformer:
        (folder / "transformer").mkdir()
        (folder / "transformer" / "config.json").write_text(json.dumps(transformer))
    return folder


def test_the_families_are_those_that_people_erase_from() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) == {
        "stable-diffusion",
        "stable-diffusion-xl",
        "stable-diffusion-3",
        "flux-dev",
        "flux-schnell",
        "pixart",
        "sana",
    }


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_every_class_of_pipeline_is_one_of_diffusers(family: object) -> None:
    for name in family.classes:
        assert issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline)


def test_a_flux_that_does_not_say_takes_no_scale_as_in_diffusers() -> None:
    signature = inspect.signature(diffusers.FluxTransformer2DModel.__init__)
    assert signature.parameters["guidance_embeds"].default is False


def test_what_can_be_loaded_has_every_capability() -> None:
    assert BACKBONES.all()["stable-diffusion"].pipelines == STABLE_DIFFUSION.classes
    assert STABLE_DIFFUSION.guidance is Guidance.CLASSIFIER_FREE
    assert len(STABLE_DIFFUSION.capabilities) == 5


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_what_a_family_can_do_follows_from_its_guidance(family: object) -> None:
    free = family.guidance is Guidance.CLASSIFIER_FREE
    assert (MODEL_CAPABILITY_UNGUIDED_ROW in family.capabilities) == free
    assert (MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE in family.capabilities) == free
    assert (MODEL_CAPABILITY_GUIDANCE_SCALE in family.capabilities) == (family.guidance is not Guidance.NONE)


@pytest.mark.parametrize(
    ("pipeline_class", "transformer", "name"),
    [
        ("StableDiffusionPipeline", {}, "stable-diffusion"),
        ("StableDiffusionXLPipeline", {}, "stable-diffusion-xl"),
        ("StableDiffusion3Pipeline", {"pooled_projection_dim": 2048}, "stable-diffusion-3"),
        ("FluxPipeline", {"guidance_embeds": True}, "flux-dev"),
        ("FluxPipeline", {"guidance_embeds": False}, "flux-schnell"),
        ("FluxPipeline", {}, "flux-schnell"),
        ("PixArtSigmaPipeline", {}, "pixart"),
        ("SanaPipeline", {}, "sana"),
        # Read as a StableDiffusionPipeline.
        ("SomethingNew", {}, "stable-diffusion"),
        (None, {}, "stable-diffusion"),
        (["FluxPipeline"], {}, "stable-diffusion"),
    ],
)
def test_a_folder_is_of_the_family_of_its_class(
    tmp_path: Path, pipeline_class: object, transformer: dict, name: str
) -> None:
    assert family_of_folder(folder_of(tmp_path / "model", pipeline_class, **transformer)).name == name


def test_a_folder_without_configurations_is_read_as_stable_diffusion(tmp_path: Path) -> None:
    assert family_of_folder(tmp_path) is STABLE_DIFFUSION
    (tmp_path / "model_index.json").write_text("[]")
    assert family_of_folder(tmp_path) is STABLE_DIFFUSION


def test_an_edited_model_is_of_its_base_s_family(tmp_path: Path) -> None:
    folder_of(tmp_path / "flux", "FluxPipeline", guidance_embeds=False)
    shutil.copytree(EMBEDDED.parent / "uce", tmp_path / "uce")
    models = {"flux": {"pipeline": "flux", "resolution": 32}, "edited": {"base": "flux", "unet": "uce"}}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": models}))
    catalogue = Catalogue.load(embedded=tmp_path / "models.yaml")
    assert [family_of_model(catalogue, name).name for name in models] == ["flux-schnell"] * 2


def test_every_model_of_the_testbed_is_stable_diffusion() -> None:
    catalogue = Catalogue.load()
    assert {family_of_model(catalogue, name) for name in catalogue.models} == {STABLE_DIFFUSION}
