"""What a scheduler configuration says of a rectified flow: its timesteps, and how its sigmas are shifted.

Noised latents of a flow are (1 - sigma) x0 + sigma e (`diffusion/path.py`). It has no betas: what it was trained for is
the number of timesteps N alone, since the model is told the time sigma N. Two schedulers of diffusers are followed,
both by Euler's steps over the sigmas that they would visit:

* FlowMatchEulerDiscreteScheduler, which Stable Diffusion 3 and FLUX name. `shift` h maps sigma to
  h sigma / (1 + (h - 1) sigma) (Esser et al., arXiv 2403.03206, section 5.3.2). With `use_dynamic_shifting`, h depends
  on the number of tokens of an image: it is mu (`time_shift_type` "linear") or exp(mu) ("exponential"), with mu on the
  line through `base_shift` at `base_image_seq_len` and `max_shift` at `max_image_seq_len` tokens;
* DPMSolverMultistepScheduler with `use_flow_sigmas`, which Sana names; its shift is `flow_shift`. Others can have
  `use_flow_sigmas` too, but no family's published folder names them.

Keys that the file lacks have the defaults of diffusers. Nothing here needs torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unerase_backend.catalogue.schedule_problems import (
    SPACINGS,
    ScheduleProblem,
    Told,
    class_name,
    is_number,
    length_problems,
    shown,
    switch_problems,
    telling,
)

FLOW_PREDICTION = "flow_prediction"
EULER, DPM_SOLVER = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
FOLLOWED = f"{EULER}, and {DPM_SOLVER} with use_flow_sigmas: true"
LEAST_SHIFT, MAX_SHIFT = 0.001, 1000.0

_SWITCHES = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "invert_sigmas",
    "stochastic_sampling",
    "thresholding",
)
# What is refused where it is true.
_OTHER_SIGMAS = "cannot be followed: it replaces the flow's sigmas by others; set it to false"
_REFUSED = {
    "use_karras_sigmas": _OTHER_SIGMAS,
    "use_exponential_sigmas": _OTHER_SIGMAS,
    "use_beta_sigmas": _OTHER_SIGMAS,
    "use_lu_lambdas": _OTHER_SIGMAS,
    "invert_sigmas": "cannot be followed: it goes from pictures to noise; set it to false",
    "stochastic_sampling": "cannot be followed: it draws new noise at every step, which here eta does; set it to false",
    "thresholding": "cannot be followed: it is for models of pixels, not of latents; set it to false",
}
_DYNAMIC = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


@dataclass(frozen=True)
class FlowTraining:
    """What a flow was trained for."""

    timesteps: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"a rectified flow of {self.timesteps} timesteps"


@dataclass(frozen=True)
class DynamicShift:
    """A shift that depends on the number of an image's tokens."""

    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    exponential: bool

    def __str__(self) -> str:
        """Return the shift in words."""
        how = "the exponential of a number" if self.exponential else "a number"
        ends = f"{self.base_shift} at {self.base_tokens} to {self.max_shift} at {self.max_tokens} tokens of an image"
        return f"{how} from {ends}"

    def mu(self, tokens: int) -> float:
        """Return the number for an image of so many tokens, as `calculate_shift` of diffusers' FluxPipeline."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return tokens * slope + (self.base_shift - slope * self.base_tokens)


@dataclass(frozen=True)
class FlowStepping:
    """Which sigmas are visited."""

    solver: str
    """The scheduler whose sigmas they are: EULER or DPM_SOLVER."""
    shift: float | DynamicShift

    def __str__(self) -> str:
        """Return the stepping in words."""
        return f"sigmas of {self.solver}, shifted by {self.shift}"


def names_flow(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a flow, and not of betas."""
    named = class_name(config)
    return named == EULER or (named == DPM_SOLVER and config.get("use_flow_sigmas") is True)


def flow_problems(config: Mapping[str, Any]) -> Iterator[ScheduleProblem]:
    """Yield each key of a flow's configuration that cannot be followed."""
    problem = telling(config)
    yield from switch_problems(config, _SWITCHES, problem)
    for key, why in _REFUSED.items():
        if config.get(key) is True:
            yield problem(key, why)
    # diffusers takes 0 for absent.
    if config.get("shift_terminal") not in (None, 0):
        yield problem("shift_terminal", "cannot be followed: it stretches the sigmas of video models; set it to null")
    if config.get("prediction_type", _default_prediction(config)) != FLOW_PREDICTION:
        given = shown(config.get("prediction_type", _default_prediction(config)))
        text = f'{given} cannot be followed on a flow; it must be "{FLOW_PREDICTION}"'
        yield ScheduleProblem("prediction_type", config.get("prediction_type"), text)
    if config.get("timestep_spacing", SPACINGS[0]) not in SPACINGS:
        yield problem("timestep_spacing", f"is unknown; it must be one of {', '.join(SPACINGS)}, or absent")
    if config.get("time_shift_type", "exponential") not in ("exponential", "linear"):
        yield problem("time_shift_type", "cannot be followed; it must be exponential or linear")
    yield from length_problems(config, problem)
    if class_name(config) == DPM_SOLVER:
        yield from _solver_problems(config, problem)
    elif config.get("use_dynamic_shifting") is True:
        yield from _dynamic_problems(config, problem)
    else:
        yield from _shift_problems(config, "shift", problem)


def flow_notes(config: Mapping[str, Any]) -> list[str]:
    """Return what a flow's configuration says without effect, one line each."""
    notes = []
    if (named := class_name(config)) != EULER:
        notes.append(f"{named} is not run: every flow is stepped by Euler over the same sigmas")
    elif config.get("use_dynamic_shifting") and config.get("shift", 1.0) != 1.0:
        value = shown(config["shift"])
        notes.append(f"shift: {value} has no effect: with use_dynamic_shifting it depends on the size of the image")
    if "timestep_spacing" in config and named == EULER:
        notes.append(f"timestep_spacing: {shown(config['timestep_spacing'])} has no effect on a flow")
    return notes


def read_flow(config: Mapping[str, Any]) -> tuple[FlowTraining, FlowStepping]:
    """Return what is followed of a flow's configuration without problems."""
    named, training = class_name(config), FlowTraining(config.get("num_train_timesteps", 1000))
    if named == DPM_SOLVER:
        return training, FlowStepping(named, float(config.get("flow_shift", 1.0)))
    if not config.get("use_dynamic_shifting"):
        return training, FlowStepping(named, float(config.get("shift", 1.0)))
    base, most, base_tokens, most_tokens = (config.get(key, default) for key, default in _DYNAMIC.items())
    exponential = config.get("time_shift_type", "exponential") == "exponential"
    return training, FlowStepping(named, DynamicShift(float(base), float(most), base_tokens, most_tokens, exponential))


def _default_prediction(config: Mapping[str, Any]) -> str:
    return FLOW_PREDICTION if class_name(config) == EULER else "epsilon"


def _solver_problems(config: Mapping[str, Any], problem: Told) -> Iterator[ScheduleProblem]:
    if config.get("use_dynamic_shifting") is True:
        text = f"cannot be followed with {DPM_SOLVER}: no pipeline tells it the size of the image; set it to false"
        yield problem("use_dynamic_shifting", text)
    if config.get("final_sigmas_type", "zero") != "zero":
        yield problem("final_sigmas_type", "cannot be followed on a flow, which ends at the picture; set it to zero")
    yield from _shift_problems(config, "flow_shift", problem)


def _dynamic_problems(config: Mapping[str, Any], problem: Told) -> Iterator[ScheduleProblem]:
    fit = True
    for key, default in _DYNAMIC.items():
        value = config.get(key, default)
        if key.endswith("_len"):
            if type(value) is not int or not 1 <= value <= 10**9:
                fit = False
                yield problem(key, "must be a whole number above 0")
        elif not is_number(value) or abs(value) > MAX_SHIFT:
            fit = False
            yield problem(key, f"must be a number from -{MAX_SHIFT:g} to {MAX_SHIFT:g}")
    base, most = (config.get(key, _DYNAMIC[key]) for key in ("base_image_seq_len", "max_image_seq_len"))
    if fit and base == most:
        yield problem("max_image_seq_len", "must be another number than base_image_seq_len")


def _shift_problems(config: Mapping[str, Any], key: str, problem: Told) -> Iterator[ScheduleProblem]:
    value = config.get(key, 1.0)
    if not is_number(value) or not LEAST_SHIFT <= value <= MAX_SHIFT:
        yield problem(key, f"must be a number from {LEAST_SHIFT:g} to {MAX_SHIFT:g}")
