"""A model that is stepped by another's schedule: the same weights make the same pictures, whatever sampler is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.stepping import schedule_of, takes_other
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.prediction import Prediction
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.generation.model_request import requested_model
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import NotFoundError, PreconditionError

CONFIGS: dict[str, dict[str, Any]] = {
    "reference": {},
    "pndm": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
    "euler": {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "use_karras_sigmas": True},
    "trailing": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "use_karras_sigmas": True},
    "velocity": {"prediction_type": "v_prediction"},
    "zero-snr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}
REFERENCE = ModelChange(schedule_of="reference")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The testbed's reference under several scheduler configurations, as pipelines of their own."""
    root = tmp_path_factory.mktemp("models")
    for name, change in CONFIGS.items():
        shutil.copytree(EMBEDDED.parent / "reference", root / name, copy_function=os.link)
        file = root / name / "scheduler" / "scheduler_config.json"
        config = {**json.loads(file.read_text()), **change}
        file.unlink()
        file.write_text(json.dumps(config))
    models = {name: {"pipeline": name, "guidance_scale": 3.0, "resolution": 32} for name in CONFIGS}
    (root / "catalogue.yaml").write_text(yaml.safe_dump({"models": models}))
    return Catalogue.load(embedded=root / "catalogue.yaml")


def loaded(folders: Catalogue, name: str, *changes: ModelChange) -> DiffusionModel:
    return load_model(folders, name, torch.device("cpu"), torch.float32, changes=changes)


def latents(model: DiffusionModel, trajectory: Trajectory) -> torch.Tensor:
    return Sampler(model, batch_rows=2).run([trajectory], picture=False)[0].latents


@pytest.mark.parametrize("name", ["pndm", "euler"])
def test_another_sampler_over_the_same_timesteps_makes_the_same_bits(
    folders: Catalogue, trajectory_of: Callable[..., Trajectory], name: str
) -> None:
    assert not takes_other(schedule_of(folders, name), schedule_of(folders, "reference"))
    expected = latents(loaded(folders, "reference"), trajectory_of())
    assert torch.equal(latents(loaded(folders, name), trajectory_of()), expected)


def test_other_timesteps_make_other_pictures_unless_stepped_by_the_reference(
    folders: Catalogue, trajectory_of: Callable[..., Trajectory]
) -> None:
    expected = latents(loaded(folders, "reference"), trajectory_of())
    assert not torch.allclose(latents(loaded(folders, "trailing"), trajectory_of()), expected, atol=0.1)
    stepped = loaded(folders, "trailing", REFERENCE)
    assert torch.equal(latents(stepped, trajectory_of()), expected)
    assert stepped.schedule.times(4).tolist() == loaded(folders, "reference").schedule.times(4).tolist()


def test_betas_and_prediction_stay_the_models_own(folders: Catalogue) -> None:
    by_velocity = loaded(folders, "reference", ModelChange(schedule_of="velocity"))
    assert (by_velocity.prediction, by_velocity.schedule.measured) == (Prediction.EPSILON, Prediction.V)
    stepped = loaded(folders, "velocity", ModelChange(schedule_of="trailing"))
    assert stepped.prediction == Prediction.V
    assert stepped.schedule.times(4)[0] == 999
    assert torch.equal(stepped.schedule.noise.values, loaded(folders, "velocity").schedule.noise.values)


def test_denoising_errors_become_those_of_the_other_prediction(folders: Catalogue) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    times = [100, 900]

    def errors(model: DiffusionModel) -> list[float]:
        measuring = measure_denoising(
            model, [picture], ["aa"], encode(model, [Conditioning(text="a")]), times, 7, batch_rows=2, decode_batch=1
        )
        while True:
            try:
                next(measuring)
            except StopIteration as stop:
                measured: list[float] = stop.value[0, 0].tolist()
                return measured

    own, of_noise = errors(loaded(folders, "velocity")), errors(loaded(folders, "velocity", REFERENCE))
    alphas = loaded(folders, "velocity").schedule.noise.values[times].tolist()
    assert of_noise == pytest.approx([alpha * error for alpha, error in zip(alphas, own, strict=True)])
    assert own != pytest.approx(of_noise)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("flow", "_class_name .* a UNet2DConditionModel is trained with betas"),
        ("zero-snr", 'rescale_betas_zero_snr true .* prediction_type "epsilon"'),
    ],
)
def test_what_cannot_be_followed_is_refused_before_its_weights_are_read(
    folders: Catalogue, name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unerase_backend.diffusion.weights.fill", None)
    for refused in (lambda: loaded(folders, name), lambda: schedule_of(folders, name)):
        with pytest.raises(PreconditionError, match=key) as caught:
            refused()
        assert caught.value.reason == "SCHEDULE_UNSUPPORTED"
    assert not folders.describe_model(name).HasField("schedule")


def test_a_description_holds_the_schedule_and_what_is_without_effect(folders: Catalogue) -> None:
    described = folders.describe_model("trailing").schedule
    assert (described.scheduler, described.prediction_type) == ("EulerDiscreteScheduler", "epsilon")
    assert (described.timestep_spacing, described.set_alpha_to_one) == ("trailing", False)
    assert described.betas == "1000 scaled_linear betas from 0.00085 to 0.012"
    assert list(described.notes) == [
        "EulerDiscreteScheduler is not run: every model is stepped by DDIM over the same betas",
        "use_karras_sigmas: true has no effect",
    ]


def test_a_schedule_counts_in_the_key_only_where_it_changes_something(folders: Catalogue, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    plain = requested_model(folders, store, "trailing")
    stepped = requested_model(folders, store, "trailing", [REFERENCE])
    assert stepped.digest != plain.digest
    assert not stepped.derived
    for name in ("reference", "pndm", "euler"):
        assert requested_model(folders, store, name, [REFERENCE]) == requested_model(folders, store, name)
    same = requested_model(folders, store, "trailing", [ModelChange(schedule_of="pndm")])
    assert same.digest == stepped.digest
    assert requested_model(folders, store, "trailing", [ModelChange(schedule_of="velocity")]).digest != stepped.digest
    with pytest.raises(NotFoundError):
        requested_model(folders, store, "trailing", [ModelChange(schedule_of="nobody")])
