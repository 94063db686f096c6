"""Scheduler configurations of rectified flows: what is followed, what is refused by key and value."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.catalogue.flow_schedules import DynamicShift, FlowStepping, FlowTraining, names_flow
from unerase_backend.catalogue.schedules import (
    audit_problem,
    describe_schedule,
    folder_problems,
    prediction_type,
    read_schedule,
    schedule_notes,
    schedule_problems,
)

# As the published folders have them.
SD3: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.29.0.dev0",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
FLUX_DEV: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
FLUX_SCHNELL = FLUX_DEV | {"shift": 1.0, "use_dynamic_shifting": False}
SANA: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.32.0.dev0",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lambda_min_clipped": float("-inf"),
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}
EULER, DPM_SOLVER = SD3["_class_name"], SANA["_class_name"]


@pytest.mark.parametrize(
    ("config", "stepping"),
    [
        (SD3, FlowStepping(EULER, 3.0)),
        (FLUX_DEV, FlowStepping(EULER, DynamicShift(0.5, 1.15, 256, 4096, exponential=True))),
        (FLUX_SCHNELL, FlowStepping(EULER, 1.0)),
        (SANA, FlowStepping(DPM_SOLVER, 3.0)),
        ({"_class_name": EULER}, FlowStepping(EULER, 1.0)),
    ],
    ids=["sd3", "flux-dev", "flux-schnell", "sana", "defaults"],
)
def test_published_configurations_are_followed(config: dict[str, Any], stepping: FlowStepping) -> None:
    assert schedule_problems(config) == []
    assert audit_problem(config) is None
    read = read_schedule(config)
    assert (read.flow, read.kind) == (True, "a rectified flow")
    assert (read.training, read.prediction, read.stepping) == (FlowTraining(1000), "flow_prediction", stepping)
    assert prediction_type(config) == "flow_prediction"


def test_keys_that_the_file_lacks_are_diffusers_own() -> None:
    written_out = dict(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config)
    without = {"_class_name": EULER, "use_dynamic_shifting": True}
    assert read_schedule(without) == read_schedule(without | written_out)
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    written_out = dict(diffusers.DPMSolverMultistepScheduler(**solver).config)
    without = {"_class_name": DPM_SOLVER, **solver}
    assert read_schedule(without) == read_schedule(without | written_out)
    assert schedule_problems(without | written_out) == []


REPLACED = "true cannot be followed: it replaces the flow's sigmas by others; set it to false"


@pytest.mark.parametrize("config", [SD3, FLUX_DEV, SANA], ids=["euler", "dynamic", "solver"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_karras_sigmas": True}, REPLACED),
        ({"use_exponential_sigmas": True}, REPLACED),
        ({"use_beta_sigmas": True}, REPLACED),
        ({"use_lu_lambdas": True}, REPLACED),
        ({"use_beta_sigmas": "no"}, '"no" must be true or false'),
        ({"invert_sigmas": True}, "true cannot be followed: it goes from pictures to noise; set it to false"),
        ({"stochastic_sampling": True}, "true cannot be followed: it draws new noise at every step"),
        ({"shift_terminal": 0.1}, "0.1 cannot be followed: it stretches the sigmas of video models; set it to null"),
        ({"thresholding": True}, "true cannot be followed: it is for models of pixels"),
        ({"thresholding": 1}, "1 must be true or false"),
        ({"use_dynamic_shifting": "auto"}, '"auto" must be true or false'),
        ({"time_shift_type": "sigmoid"}, '"sigmoid" cannot be followed; it must be exponential or linear'),
        ({"timestep_spacing": "logit"}, '"logit" is unknown; it must be one of leading, trailing, linspace, or absent'),
        ({"prediction_type": "epsilon"}, '"epsilon" cannot be followed on a flow; it must be "flow_prediction"'),
        ({"prediction_type": "v_prediction"}, '"v_prediction" cannot be followed on a flow'),
        ({"num_train_timesteps": 0}, "0 must be a whole number from 1"),
        ({"num_train_timesteps": 1000.0}, "1000.0 must be a whole number"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_no_flow_follows_is_named_with_its_value(
    config: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    refused(config, change, said)


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (SD3, {"shift": 0}, "0 must be a number from 0.001 to 1000"),
        (SD3, {"shift": -3.0}, "-3.0 must be a number"),
        (SD3, {"shift": "3"}, '"3" must be a number'),
        (SD3, {"shift": True}, "true must be a number"),
        (SD3, {"shift": None}, "null must be a number"),
        (SD3, {"shift": float("inf")}, "Infinity must be a number"),
        (SANA, {"flow_shift": float("nan")}, "NaN must be a number"),
        (SANA, {"flow_shift": 1e6}, "1000000.0 must be a number"),
        (SANA, {"final_sigmas_type": "sigma_min"}, '"sigma_min" cannot be followed on a flow, which ends at'),
        (SANA, {"use_dynamic_shifting": True}, "true cannot be followed with DPMSolverMultistepScheduler"),
        (SANA, {"use_flow_sigmas": "yes", "prediction_type": "epsilon"}, '"yes" must be true or false'),
        (FLUX_DEV, {"base_shift": None}, "null must be a number"),
        (FLUX_DEV, {"max_shift": float("nan")}, "NaN must be a number"),
        (FLUX_DEV, {"max_shift": 10**400}, "must be a number from -1000 to 1000"),
        (FLUX_DEV, {"base_image_seq_len": 256.0}, "256.0 must be a whole number above 0"),
        (FLUX_DEV, {"max_image_seq_len": 0}, "0 must be a whole number above 0"),
        (FLUX_DEV, {"max_image_seq_len": 256}, "256 must be another number than base_image_seq_len"),
    ],
    ids=str,
)
def test_what_one_flow_does_not_follow_is_named(config: dict[str, Any], change: dict[str, Any], said: str) -> None:
    refused(config, change, said)


def refused(config: dict[str, Any], change: dict[str, Any], said: str) -> None:
    (problem,) = schedule_problems(config | change)
    key = next(iter(change))
    assert (problem.key, problem.value) == (key, change[key]) or change[key] != change[key]
    assert str(problem).startswith(f"scheduler_config.json: {key} ")
    assert said in str(problem)
    with pytest.raises(ValueError, match=key):
        read_schedule(config | change)


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name in diffusers.schedulers.__dir__()
        if name.endswith("Scheduler") and ("Flow" in name or name in ("SCMScheduler", "EDMEulerScheduler"))
    ),
)
def test_other_schedulers_of_flows_are_refused_and_those_that_are_followed_are_named(name: str) -> None:
    problems = schedule_problems(SD3 | {"_class_name": name})
    if name == EULER:
        assert problems == []
        return
    (problem,) = problems
    assert (problem.key, problem.value) == ("_class_name", name)
    assert f"{EULER}, and {DPM_SOLVER} with use_flow_sigmas: true" in str(problem)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"])
def test_flow_sigmas_of_schedulers_that_no_published_family_names_are_refused(name: str) -> None:
    problems = schedule_problems(SANA | {"_class_name": name})
    assert [problem.key for problem in problems] == ["use_flow_sigmas", "prediction_type"]
    assert str(problems[0]).endswith(
        "use_flow_sigmas true cannot be followed: it replaces the betas by a flow; for a flow, name "
        "FlowMatchEulerDiscreteScheduler with flow_shift as its shift"
    )


def test_a_prediction_of_the_flow_needs_flow_sigmas() -> None:
    (problem,) = schedule_problems(SANA | {"use_flow_sigmas": False})
    assert (problem.key, problem.value) == ("prediction_type", "flow_prediction")
    assert str(problem).endswith("unless use_flow_sigmas is true")
    (problem,) = schedule_problems({"_class_name": DPM_SOLVER, "use_flow_sigmas": True})
    assert str(problem).startswith('scheduler_config.json: prediction_type "epsilon" cannot be followed on a flow')


def test_the_same_solver_without_flow_sigmas_has_betas() -> None:
    with_betas = SANA | {"use_flow_sigmas": False, "prediction_type": "epsilon"}
    assert not names_flow(with_betas)
    assert str(read_schedule(with_betas).training) == "1000 linear betas from 0.0001 to 0.02"


WITH_BETAS = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("network", "flow"),
    [
        ("SD3Transformer2DModel", True),
        ("FluxTransformer2DModel", True),
        ("SanaTransformer2DModel", True),
        ("PixArtTransformer2DModel", False),
    ],
)
def test_a_transformer_is_sampled_as_it_was_trained(tmp_path: Path, network: str, flow: bool) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": network}))
    fit, unfit = (SD3, WITH_BETAS) if flow else (WITH_BETAS, SD3)
    assert folder_problems(tmp_path, fit) == []
    (problem,) = folder_problems(tmp_path, unfit)
    assert (problem.key, problem.value) == ("_class_name", unfit["_class_name"])
    assert "is of another model: take the file of the one that this is made from" in str(problem)
    assert f"and a {network} is trained {'as a flow' if flow else 'with betas'}" in str(problem)


def test_a_network_that_is_not_known_may_be_either(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    for content in ('{"_class_name": "MyTransformer"}', '{"_class_name": []}', "{", "[]"):
        (tmp_path / "transformer" / "config.json").write_text(content)
        assert folder_problems(tmp_path, SD3) == folder_problems(tmp_path, WITH_BETAS) == []


def test_a_sana_without_flow_sigmas_is_told_of_them(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "SanaTransformer2DModel"}')
    (problem,) = folder_problems(tmp_path, SANA | {"use_flow_sigmas": False})
    assert str(problem).endswith("unless use_flow_sigmas is true")


def test_a_dynamic_shift_needs_a_pipeline_that_tells_the_size_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    for network, told in (("SanaTransformer2DModel", False), ("FluxTransformer2DModel", True)):
        (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": network}))
        assert [problem.key for problem in folder_problems(tmp_path, FLUX_DEV)] == ["use_dynamic_shifting"] * (not told)


def test_no_unet_is_sampled_as_a_flow(tmp_path: Path) -> None:
    assert folder_problems(tmp_path, SD3) == []
    (tmp_path / "unet").mkdir()
    (problem,) = folder_problems(tmp_path, SD3)
    assert str(problem).startswith(f'scheduler_config.json: _class_name "{EULER}" is of another model: take ')
    # Nothing else is said of it.
    assert folder_problems(tmp_path, SD3 | {"prediction_type": "epsilon"}) == [problem]
    (problem,) = folder_problems(tmp_path, SANA)
    assert str(problem).startswith("scheduler_config.json: use_flow_sigmas true is of another model: take ")
    assert folder_problems(tmp_path, SANA | {"use_flow_sigmas": False, "prediction_type": "epsilon"}) == []


def test_a_flow_is_described_in_words(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(SD3))
    described = describe_schedule(tmp_path)
    assert described is not None
    assert (described.scheduler, described.prediction_type) == (EULER, "flow_prediction")
    assert described.flow == (
        "a rectified flow of 1000 timesteps over the sigmas of FlowMatchEulerDiscreteScheduler, shifted by 3.0"
    )
    assert (described.betas, described.timestep_spacing, described.set_alpha_to_one) == ("", "", False)
    # JSON of diffusers has infinities.
    file.write_text(json.dumps(SANA))
    described = describe_schedule(tmp_path)
    assert described is not None
    assert described.flow.endswith(f"over the sigmas of {DPM_SOLVER}, shifted by 3.0")
    assert len(described.notes) == 1
    file.write_text(json.dumps(SD3 | {"use_karras_sigmas": True}))
    assert describe_schedule(tmp_path) is None


def test_another_number_of_training_timesteps_is_no_matter_of_sampling_but_of_an_audit() -> None:
    problem = audit_problem(SD3 | {"num_train_timesteps": 500})
    assert str(problem) == "scheduler_config.json: num_train_timesteps 500 is not 1000"
    assert schedule_problems(SD3 | {"num_train_timesteps": 500}) == []


def test_what_is_without_effect_is_said() -> None:
    assert schedule_notes(SD3) == schedule_notes(FLUX_SCHNELL) == []
    assert schedule_notes(FLUX_DEV | {"timestep_spacing": "linspace"}) == [
        "shift: 3.0 has no effect: with use_dynamic_shifting it depends on the size of the image",
        'timestep_spacing: "linspace" has no effect on a flow',
    ]
    assert schedule_notes(SANA) == [
        "DPMSolverMultistepScheduler is not run: every flow is stepped by Euler over the same sigmas"
    ]


def test_a_stepping_in_words_tells_it_from_others() -> None:
    configs = [SD3, SD3 | {"shift": 3.0000001}, FLUX_DEV, FLUX_DEV | {"time_shift_type": "linear"}, FLUX_SCHNELL, SANA]
    words = [str(read_schedule(config).stepping) for config in configs]
    assert len({*words}) == len(words)
    assert words[0] == "sigmas of FlowMatchEulerDiscreteScheduler, shifted by 3.0"
    assert words[2].endswith(
        "shifted by the exponential of a number from 0.5 at 256 to 1.15 at 4096 tokens of an image"
    )


@given(
    tokens=st.integers(1, 20_000),
    base=st.floats(-2, 2),
    most=st.floats(-2, 2),
    base_tokens=st.integers(1, 1000),
    further=st.integers(1, 5000),
)
@settings(max_examples=100, deadline=None)
def test_a_dynamic_shift_is_that_of_diffusers_pipelines(
    tokens: int, base: float, most: float, base_tokens: int, further: int
) -> None:
    shift = DynamicShift(base, most, base_tokens, base_tokens + further, exponential=True)
    theirs = calculate_shift(tokens, base_tokens, base_tokens + further, base, most)
    assert shift.mu(tokens) == pytest.approx(theirs, rel=1e-12, abs=1e-12)


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.floats())


@given(
    base=st.sampled_from([SD3, FLUX_DEV, SANA]),
    change=st.dictionaries(st.sampled_from(sorted({*SD3, *FLUX_DEV, *SANA, "shift_terminal"})), json_values),
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_file_holds_it_is_followed_or_refused(base: dict[str, Any], change: dict[str, Any]) -> None:
    config = base | change
    schedule_notes(config)
    if schedule_problems(config):
        with pytest.raises(ValueError, match=r"scheduler_config\.json"):
            read_schedule(config)
    else:
        assert read_schedule(config).training.timesteps == config["num_train_timesteps"]
