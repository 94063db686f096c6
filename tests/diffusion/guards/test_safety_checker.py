"""The safety checker against diffusers' pipeline with the same tiny random checker, loaded from the same folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor

from diffusion.guards.conftest import CPU
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.runtime.errors import UnsafeModelError

PICTURES = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Path:
    """The testbed's reference with a safety checker, whose thresholds some pictures reach."""
    folder = tmp_path_factory.mktemp("checked")
    shutil.copytree(catalogue.model_parts("testbed/reference").folder, folder / "pipeline")
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds.data = torch.randn(17, 8)
    checker.special_care_embeds.data = torch.randn(3, 8)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPImageProcessor(**sides)
    processor.save_pretrained(folder / "pipeline" / "feature_extractor")
    # Thresholds between the cosines of the pictures, so that each concept is near to some of them.
    with torch.inference_mode():
        pixels = processor(list(PICTURES), return_tensors="pt").pixel_values
        seen = functional.normalize(checker.visual_projection(checker.vision_model(pixels)[1]))
        for name, share in (("concept_embeds", 0.97), ("special_care_embeds", 0.8)):
            cosines = seen @ functional.normalize(getattr(checker, name)).T
            getattr(checker, f"{name}_weights").data = cosines.quantile(share, dim=0)
    checker.save_pretrained(folder / "pipeline" / "safety_checker")
    entries = {
        "own/base": {"pipeline": "pipeline", "resolution": 32},
        "own/checked": {"base": "own/base", "guards": [{"kind": "safety-checker"}]},
    }
    (folder / "catalogue.yaml").write_text(yaml.safe_dump({"models": entries}))
    return folder


@pytest.fixture(scope="module")
def checked(folder: Path) -> Catalogue:
    return Catalogue.load([str(folder / "catalogue.yaml")])


@pytest.fixture(scope="module")
def guards(checked: Catalogue) -> Guards:
    return Guards.load(checked.guards("own/checked"), checked.model_parts("own/checked").folder, CPU)


def decided_by_diffusers(parts: Path, **how: Any) -> list[bool]:
    """What the pipeline in this folder says of the pictures, with its checker loaded so."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        parts,
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(parts / "safety_checker", **how),
        feature_extractor=CLIPImageProcessor.from_pretrained(parts / "feature_extractor"),
        local_files_only=True,
    )
    theirs = []
    for picture in PICTURES:
        shown = torch.tensor(picture / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
        _, (flagged,) = pipeline.run_safety_checker(shown, CPU, torch.float32)
        theirs.append(bool(flagged))
    return theirs


def test_it_withholds_what_diffusers_withholds(folder: Path, guards: Guards) -> None:
    theirs = decided_by_diffusers(folder / "pipeline")
    assert [bool(guards.refuse(picture)) for picture in PICTURES] == theirs
    assert True in theirs
    assert False in theirs


def test_a_withheld_picture_is_withheld_from_the_trajectory(
    checked: Catalogue, guards: Guards, trajectory_of: Callable[..., Trajectory]
) -> None:
    sampler = Sampler(load_model(checked, "own/checked", CPU, torch.float32), batch_rows=8, decode_batch=2)
    trajectories = [trajectory_of(latent_seed=seed, steps=2) for seed in range(8)]
    finished = sampler.run(trajectories, given=[Given(guards=guards)] * 8)
    plain = sampler.run(trajectories)
    for ours, open_weights in zip(finished, plain, strict=True):
        assert open_weights.picture is not None
        assert ours.withheld == bool(guards.refuse(open_weights.picture))
        assert (ours.picture is None) == ours.withheld
        # The latents are not the user's to get, but they are what the weights made.
        assert torch.equal(ours.latents, open_weights.latents)


def test_its_files_are_part_of_the_models_digest(folder: Path, checked: Catalogue, tmp_path: Path) -> None:
    described = checked.describe_model("own/checked")
    assert described.weights_digest == checked.describe_model("own/base").digest
    assert {file.component for file in described.guards[0].files} == {"safety_checker", "feature_extractor"}
    shutil.copytree(folder, tmp_path / "changed")
    weights = tmp_path / "changed" / "pipeline" / "safety_checker" / "model.safetensors"
    tensors = load_file(weights)
    tensors["concept_embeds_weights"] += 0.1
    save_file(tensors, weights, {"format": "pt"})
    changed = Catalogue.load([str(tmp_path / "changed" / "catalogue.yaml")]).describe_model("own/checked")
    assert changed.weights_digest == described.weights_digest
    assert changed.digest != described.digest


def test_a_checker_that_is_there_as_a_variant_alone_is_read_as_diffusers_does(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    parts = tmp_path / "half" / "pipeline"
    weights = parts / "safety_checker" / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(half, weights.with_name("model.fp16.safetensors"), {"format": "pt"})
    read = Catalogue.load([str(tmp_path / "half" / "catalogue.yaml")])
    assert not check_model(read, "own/checked").problems
    described = read.describe_model("own/checked")
    assert [file.component for file in described.guards[0].files].count("safety_checker") == 2
    guards = Guards.load(read.guards("own/checked"), read.guard_folder("own/checked"), CPU)
    theirs = decided_by_diffusers(parts, variant="fp16", dtype=torch.float32)
    assert [bool(guards.refuse(picture)) for picture in PICTURES] == theirs
    assert True in theirs
    # What is not loaded is no part of the digest.
    save_file(half, weights.with_name("model.bf16.safetensors"), {"format": "pt"})
    again = Catalogue.load([str(tmp_path / "half" / "catalogue.yaml")])
    assert again.describe_model("own/checked").digest == described.digest


def test_a_checker_that_lacks_a_tensor_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "spoiled")
    weights = tmp_path / "spoiled" / "pipeline" / "safety_checker" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["concept_embeds"]
    save_file(tensors, weights, {"format": "pt"})
    spoiled = Catalogue.load([str(tmp_path / "spoiled" / "catalogue.yaml")])
    with pytest.raises(UnsafeModelError, match="concept_embeds"):
        Guards.load(spoiled.guards("own/checked"), spoiled.model_parts("own/checked").folder, CPU)


def test_a_pipeline_without_a_checker_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.yaml"
    entry = {"base": "testbed/reference", "guards": [{"kind": "safety-checker"}]}
    file.write_text(yaml.safe_dump({"models": {"own/checked": entry}}))
    with pytest.raises(UnsafeModelError, match="feature_extractor"):
        Catalogue.load([str(file)]).describe_model("own/checked")
