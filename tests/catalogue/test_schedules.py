"""Scheduler configurations: what is followed, what is refused by key and value, and what is without effect."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.catalogue.schedules import (
    SCHEDULERS,
    TrainingSchedule,
    read_schedule,
    schedule_notes,
    schedule_problems,
    scheduler_config,
)

PNDM: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.31.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
# It needs a package that is not installed here.
NEEDS_MORE = "DPMSolverSDEScheduler"


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_with_betas_is_followed(name: str) -> None:
    assert schedule_problems(PNDM | {"_class_name": name}) == []
    read = read_schedule(PNDM | {"_class_name": name})
    assert (read.prediction, read.stepping.spacing, read.stepping.alpha_to_one) == ("epsilon", "leading", False)
    assert str(read.training) == "1000 scaled_linear betas from 0.00085 to 0.012"


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {NEEDS_MORE}))
def test_betas_that_the_file_lacks_are_the_schedulers_own(name: str) -> None:
    theirs = getattr(diffusers, name)()
    ours = read_schedule({"_class_name": name}).training
    torch.testing.assert_close(torch.tensor(ours.betas()), theirs.betas, rtol=1e-5, atol=1e-8)


def test_every_scheduler_of_diffusers_that_has_betas_is_known_or_is_for_something_else() -> None:
    with_betas = set()
    for file in Path(diffusers.__file__).parent.glob("schedulers/scheduling_*.py"):
        if "trained_betas" in file.read_text() and "sde" not in file.stem:
            module = importlib.import_module(f"diffusers.schedulers.{file.stem}")
            with_betas |= {name for name in vars(module) if name.endswith("Scheduler") and hasattr(diffusers, name)}
    # Of videos, of pictures that are inverted or repaired, without a schedule of betas in their configuration.
    others = {name for name in with_betas if name.startswith("CogVideoX") or "Inverse" in name}
    others |= {"RePaintScheduler", "UnCLIPScheduler", "IPNDMScheduler"}
    assert with_betas - others <= set(SCHEDULERS)


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        (
            {"prediction_type": "sample"},
            "prediction_type",
            '"sample" cannot be followed; it must be one of epsilon, v_',
        ),
        ({"prediction_type": "flow_prediction"}, "prediction_type", '"flow_prediction" cannot'),
        ({"timestep_spacing": "karras"}, "timestep_spacing", '"karras" cannot be followed; it must be one of leading'),
        ({"beta_schedule": "sigmoid"}, "beta_schedule", '"sigmoid" cannot be followed; it must be one of linear'),
        ({"beta_start": 0}, "beta_start", "0 must be a number above 0 and under 1"),
        ({"beta_end": "0.02"}, "beta_end", '"0.02" must be a number'),
        ({"beta_end": float("nan")}, "beta_end", "NaN must be a number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps", "0 must be a whole number from 1"),
        ({"num_train_timesteps": 1e3}, "num_train_timesteps", "1000.0 must be a whole number"),
        (
            {"trained_betas": [0.1, 0.2]},
            "trained_betas",
            "[0.1, 0.2] must be as many as num_train_timesteps, 1000, not",
        ),
        ({"trained_betas": "cosine"}, "trained_betas", '"cosine" must be a list of numbers'),
        ({"trained_betas": [1.0] * 1000}, "trained_betas", "must be a list of numbers above 0 and under 1"),
        ({"beta_end": 0.9}, "beta_end", '0.9 cannot be followed with prediction_type "epsilon"'),
        ({"trained_betas": [0.5] * 1000}, "trained_betas", 'cannot be followed with prediction_type "epsilon"'),
        ({"thresholding": True}, "thresholding", "true cannot be followed: it is for models of pixels"),
        ({"thresholding": "yes"}, "thresholding", '"yes" must be true or false'),
        ({"predict_epsilon": False}, "predict_epsilon", "false cannot be followed"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas", "true cannot be followed"),
        (
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr",
            'true cannot be followed with prediction_type "ep',
        ),
        ({"_class_name": "Custom"}, "_class_name", '"Custom" has no noise schedule of betas that is known here'),
        ({"_class_name": ["a", "b"]}, "_class_name", "has no noise schedule of betas that is known here"),
    ],
)
def test_what_cannot_be_followed_is_named_with_its_value(change: dict[str, Any], key: str, said: str) -> None:
    (problem,) = schedule_problems(PNDM | change)
    assert problem.key == key
    assert said in str(problem)
    assert str(problem).startswith(f"scheduler_config.json: {key} ")
    with pytest.raises(ValueError, match=key):
        read_schedule(PNDM | change)


def test_a_configuration_that_names_nothing_has_no_betas() -> None:
    (nothing,) = schedule_problems({})
    assert "the noise schedule is not known" in str(nothing)
    assert schedule_problems({"beta_schedule": "linear"}) == []


def test_every_problem_is_told_at_once() -> None:
    changes = {"prediction_type": "sample", "timestep_spacing": "?", "thresholding": True, "beta_start": -1}
    assert [problem.key for problem in schedule_problems(PNDM | changes)] == [
        "thresholding",
        "prediction_type",
        "timestep_spacing",
        "beta_start",
    ]


def test_zero_terminal_snr_is_followed_where_the_velocity_is_predicted() -> None:
    read = read_schedule(PNDM | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert read.training.zero_snr
    assert str(read.training).endswith("rescaled to zero terminal SNR")


def test_what_is_without_effect_is_said() -> None:
    assert schedule_notes(PNDM | {"_class_name": "DDIMScheduler"}) == []
    euler = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "steps_offset": 0, "clip_sample": True}
    assert schedule_notes(PNDM | euler) == [
        "EulerDiscreteScheduler is not run: every model is stepped by DDIM over the same betas",
        "use_karras_sigmas: true has no effect",
        "clip_sample: true has no effect: latents are not clipped",
        "steps_offset: 0 has no effect: it is 1, as StableDiffusionPipeline sets it",
    ]
    # Trailing timesteps have no offset.
    assert len(schedule_notes(PNDM | euler | {"timestep_spacing": "trailing"})) == 3


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.floats())


@given(change=st.dictionaries(st.sampled_from(sorted({*PNDM, "thresholding", "rescale_betas_zero_snr"})), json_values))
@settings(max_examples=200, deadline=None)
def test_whatever_the_file_holds_it_is_followed_or_refused(change: dict[str, Any]) -> None:
    config = PNDM | change
    if schedule_problems(config):
        with pytest.raises(ValueError, match=r"scheduler_config\.json"):
            read_schedule(config)
    else:
        read = read_schedule(config)
        assert len(read.training.betas()) == read.training.timesteps


def test_betas_are_the_same_however_they_are_given() -> None:
    linear = read_schedule(PNDM).training
    listed = read_schedule(PNDM | {"trained_betas": linear.betas()}).training
    assert linear.same_as(listed)
    assert listed.same_as(linear)
    others: list[dict[str, Any]] = [
        {"beta_end": 0.0121},
        {"beta_schedule": "linear"},
        {"num_train_timesteps": 999},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ]
    for other in others:
        assert not linear.same_as(read_schedule(PNDM | other).training), other
    assert isinstance(listed, TrainingSchedule)


def test_a_configuration_is_read_from_its_folder(tmp_path: Path) -> None:
    assert scheduler_config(tmp_path) is None
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    for broken in ("{", "[]", "\xff"):
        file.write_text(broken, encoding="latin-1")
        assert scheduler_config(tmp_path) is None
    file.write_text(json.dumps(PNDM))
    assert scheduler_config(tmp_path) == PNDM


def test_configurations_are_read_without_torch() -> None:
    code = "import sys, unerase_backend.catalogue.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
