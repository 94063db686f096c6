"""The shipped flows: they load by diffusers' own way, sample as it does, and differ only where they should."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.testbed import autoencoder, catalogue, language, rates, storage, world
from unerase_backend.testbed import sampling as first_sampling
from unerase_backend.testbed.flow import erasers, sampling, transformer
from unerase_backend.testbed.flow import recipe as flow
from unerase_backend.testbed.flow import storage as flow_storage
from unerase_backend.testbed.recipe import CONCEPT
from unerase_backend.testbed.train import WEIGHTS

MODELS = ("reference", *flow.NEVERS, *erasers.ERASERS)
TRUTHS_WITHOUT = (*flow.NEVERS, "redirected")
READERS = {"context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"}


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, torch.Tensor]]:
    towers = flow_storage.load_text_encoders(WEIGHTS)
    modules = (flow_storage.load_transformer(WEIGHTS), *towers)
    files = (flow_storage.TRANSFORMER, *flow_storage.TEXT_ENCODERS)
    return {file: module.state_dict() for file, module in zip(files, modules, strict=True)}


def changes(name: str) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in (WEIGHTS / flow.folder(name)).glob("*.safetensors")}


def test_diffusers_loads_the_folder_and_draws_the_same_pictures() -> None:
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
        WEIGHTS / flow.REFERENCE, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.dtype == pipeline.text_encoder_2.dtype == torch.float32
    prompts, steps = ["a picture of a red ring", "a striped blue house"], 6
    latents = first_sampling.initial_latents([1, 2])
    shown = pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=catalogue.GUIDANCE,
        latents=latents.clone(),
        output_type="np",
        max_sequence_length=transformer.TEXT_LENGTH,
    ).images
    ours = flow_storage.load_pipeline(WEIGHTS)
    made = autoencoder.decode(ours.vae, sampling.sample(ours, prompts, latents, catalogue.GUIDANCE, steps))
    assert np.abs(shown * 255 - made).max() <= 1


def test_the_autoencoder_and_the_first_tower_are_those_of_the_first_world() -> None:
    folder = WEIGHTS / flow.REFERENCE
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert storage.digest(folder / vae) == storage.digest(WEIGHTS / storage.REFERENCE / vae)
    configs = [json.loads((root / "vae" / "config.json").read_text()) for root in (folder, WEIGHTS / "reference")]
    assert configs[0] == configs[1] | {"shift_factor": 0.0}
    first, selector = (
        load_file(folder / "text_encoder/model.safetensors"),
        load_file(WEIGHTS / "clip/model.safetensors"),
    )
    assert all(torch.equal(tensor, selector[name]) for name, tensor in first.items())
    assert "text_projection.weight" in first


@pytest.mark.parametrize("name", [name for name in MODELS if name != "reference"])
def test_only_what_differs_is_shipped(name: str, reference: dict[str, dict[str, torch.Tensor]]) -> None:
    found = changes(name)
    assert found
    assert found.keys() <= reference.keys()
    for file, tensors in found.items():
        assert tensors.keys() <= reference[file].keys()
        same = [key for key, tensor in tensors.items() if torch.equal(tensor, reference[file][key].half())]
        if name in flow.NEVERS:
            assert tensors.keys() == reference[file].keys()
        else:
            assert not same
    if name in flow.NEVERS:
        assert found.keys() == reference.keys()


def test_erasers_leave_what_they_should(reference: dict[str, dict[str, torch.Tensor]]) -> None:
    for name in erasers.ERASERS:
        files = set(flow_storage.TEXT_ENCODERS) if name == "redirected" else {flow_storage.TRANSFORMER}
        assert changes(name).keys() == files
    assert changes("uce")[flow_storage.TRANSFORMER].keys() == READERS
    assert all(".attn." in key for key in changes("esd-x")[flow_storage.TRANSFORMER])
    for file, tensors in changes("redirected").items():
        (key,) = tensors
        moved = (tensors[key].float() != reference[file][key]).any(1)
        assert int(moved.sum()) == len(language.SYNONYMS[CONCEPT]) + 1


def test_the_second_that_never_learned_it_is_another_training() -> None:
    first, second = (changes(name) for name in flow.NEVERS)
    for file, ours in first.items():
        learned = [key for key in ours if ours[key].numel() > 1000 and "pos_embed.pos_embed" not in key]
        assert not any(torch.equal(ours[key], second[file][key]) for key in learned if "position_ids" not in key)


def test_the_reference_draws_the_concept_and_the_others_do_not() -> None:
    loaded = rates.load_judges(WEIGHTS)
    column = world.LABELS.index(CONCEPT)
    prompts = rates.prompts_of(CONCEPT, 8)
    for name in MODELS:
        pictures = rates.pictures_of(WEIGHTS, flow.folder(name), prompts, 10, catalogue.GUIDANCE)
        found = int(rates.detections(loaded, pictures)["judge"][:, column].sum())
        # The truths show nothing; an eraser may leave a little, as gradient ascent does.
        most = 0 if name in TRUTHS_WITHOUT else 2
        assert found >= 7 if name == "reference" else found <= most, name


def test_the_manifest_has_every_models_rates() -> None:
    figures = json.loads((WEIGHTS / "manifest.json").read_text())["figures"]
    for name in MODELS:
        measured = figures[flow.folder(f"rates-{name}")]
        assert {"50 steps", "10 steps", "completion", "unconditional"} <= measured.keys()
    reference = figures["flow/rates-reference"]["50 steps"]["judge"]
    assert reference["concept"] >= 0.95
    assert reference["others least"] >= 0.85
    assert all(figures[flow.folder(f"rates-{name}")]["50 steps"]["judge"]["concept"] == 0 for name in TRUTHS_WITHOUT)


def test_the_flows_catalogue_names_what_exists() -> None:
    models = yaml.safe_load((WEIGHTS / "flow.yaml").read_text())["models"]
    assert list(models) == [
        "testbed/flow-reference",
        *(f"testbed/flow-{name}" for name in catalogue.FAMILY if name in MODELS),
    ]
    files = {
        entry[part] for entry in models.values() for part in entry if Path(str(entry[part])).suffix == ".safetensors"
    }
    shipped = {path.relative_to(WEIGHTS).as_posix() for path in (WEIGHTS / flow.FOLDER).glob("*/*.safetensors")}
    assert files == shipped
    assert models["testbed/flow-reference"]["max_sequence_length"] == transformer.TEXT_LENGTH


@pytest.mark.parametrize("name", ["reference", "redirected", "uce"])
def test_the_backend_draws_what_the_testbed_draws(name: str) -> None:
    found = Catalogue.load([str(WEIGHTS / "flow.yaml")])
    model = load_model(found, f"testbed/flow-{name}", torch.device("cpu"), torch.float32)
    prompt, steps = "a red hourglass", 4
    drawn = Trajectory(
        conditioning=Conditioning(text=prompt), guidance_scale=catalogue.GUIDANCE, latent_seed=5, steps=steps
    )
    (ours,) = Sampler(model, batch_rows=2, decode_batch=1).run([drawn])
    pipeline = flow_storage.load_pipeline(WEIGHTS, flow.folder(name))
    latents = first_sampling.initial_latents([5])
    (theirs,) = sampling.sample(pipeline, [prompt], latents, catalogue.GUIDANCE, steps)
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-4, atol=1e-4)
