"""What a pipeline's scheduler configuration says of its model: betas or a flow, prediction, and what is visited.

Flows are read by `flow_schedules.py`. Every model with betas is stepped by DDIM (`diffusion/schedule.py`), whatever
scheduler its folder names. A scheduler of diffusers with betas says three things that DDIM follows:

* the betas: `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `trained_betas`,
  `rescale_betas_zero_snr`;
* the prediction: `prediction_type`, "epsilon" or "v_prediction";
* the stepping: `timestep_spacing`, and `set_alpha_to_one`, which gives the cumulative alpha after the last step.

Keys that the file lacks have the defaults of diffusers: those of the named scheduler for its betas, and those of
DDIMScheduler for the rest. Every other key is without effect (`schedule_notes`). A configuration that cannot be
followed is refused (`schedule_problems`). Nothing here needs torch.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unerase.v1.models_pb2 import Schedule
from unerase_backend.catalogue.flow_schedules import (
    DPM_SOLVER,
    EULER,
    FLOW_PREDICTION,
    FOLLOWED,
    FlowStepping,
    FlowTraining,
    flow_notes,
    flow_problems,
    names_flow,
    read_flow,
)
from unerase_backend.catalogue.schedule_problems import (
    FILE,
    SPACINGS,
    ScheduleProblem,
    Told,
    class_name,
    length_problems,
    shown,
    switch_problems,
    telling,
)

EPSILON, V_PREDICTION = "epsilon", "v_prediction"
PREDICTIONS = (EPSILON, V_PREDICTION)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TRAINING_TIMESTEPS = 1000
"""What the evaluations' grids of timesteps are made for."""

_DDIM_BETAS = (1e-4, 0.02, "linear")
_LATENT_BETAS = (0.00085, 0.012, "linear")
_DISTILLED_BETAS = (0.00085, 0.012, "scaled_linear")
SCHEDULERS = {
    "DDIMParallelScheduler": _DDIM_BETAS,
    "DDIMScheduler": _DDIM_BETAS,
    "DDPMParallelScheduler": _DDIM_BETAS,
    "DDPMScheduler": _DDIM_BETAS,
    "DEISMultistepScheduler": _DDIM_BETAS,
    "DPMSolverMultistepScheduler": _DDIM_BETAS,
    "DPMSolverSDEScheduler": _LATENT_BETAS,
    "DPMSolverSinglestepScheduler": _DDIM_BETAS,
    "EulerAncestralDiscreteScheduler": _DDIM_BETAS,
    "EulerDiscreteScheduler": _DDIM_BETAS,
    "HeunDiscreteScheduler": _LATENT_BETAS,
    "KDPM2AncestralDiscreteScheduler": _LATENT_BETAS,
    "KDPM2DiscreteScheduler": _LATENT_BETAS,
    "LCMScheduler": _DISTILLED_BETAS,
    "LMSDiscreteScheduler": _DDIM_BETAS,
    "PNDMScheduler": _DDIM_BETAS,
    "SASolverScheduler": _DDIM_BETAS,
    "TCDScheduler": _DISTILLED_BETAS,
    "UniPCMultistepScheduler": _DDIM_BETAS,
}
"""The schedulers whose betas are followed, with their defaults of beta_start, beta_end and beta_schedule."""

# A smaller cumulative alpha is not a normal number in float32, in which diffusers computes it.
_LEAST_ALPHA = 2.0**-126
_UNET = "UNet2DConditionModel"
WITH_BETAS = (_UNET, "PixArtTransformer2DModel", "Transformer2DModel")
"""The classes of denoisers that are trained with betas."""
FLOWS = ("SD3Transformer2DModel", "FluxTransformer2DModel", "SanaTransformer2DModel")
"""The classes of denoisers that are trained as a flow."""
_WITHOUT_SIZE = ("SanaTransformer2DModel",)
_OF_ANOTHER = "is of another model: take the file of the one that this is made from"
_SWITCHES = ("rescale_betas_zero_snr", "set_alpha_to_one", "thresholding", "use_flow_sigmas")
_REMEDY_OF_FLOW = ", unless use_flow_sigmas is true"
_OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@dataclass(frozen=True)
class TrainingSchedule:
    """The betas that a model was trained with."""

    timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: tuple[float, ...] | None
    zero_snr: bool
    """The betas are rescaled so that the last timestep is pure noise (Lin et al., arXiv 2305.08891, algorithm 1)."""

    def __str__(self) -> str:
        """Return the betas in words."""
        if self.trained_betas is not None:
            betas = f"{self.timesteps} trained betas"
        elif self.beta_schedule == "squaredcos_cap_v2":
            betas = f"{self.timesteps} squaredcos_cap_v2 betas"
        else:
            betas = f"{self.timesteps} {self.beta_schedule} betas from {self.beta_start:g} to {self.beta_end:g}"
        return f"{betas}, rescaled to zero terminal SNR" if self.zero_snr else betas

    def same_as(self, other: "TrainingSchedule") -> bool:
        """Whether the betas of both are the same, however they are given, up to the rounding of float32."""
        if self.timesteps != other.timesteps or self.zero_snr != other.zero_snr:
            return False
        if self == other:
            return True
        pairs = zip(self.betas(), other.betas(), strict=True)
        return all(math.isclose(one, two, rel_tol=1e-5, abs_tol=1e-9) for one, two in pairs)

    def betas(self) -> list[float]:
        """Return the betas before they are rescaled, as diffusers computes them."""
        if self.trained_betas is not None:
            return list(self.trained_betas)
        if self.beta_schedule == "squaredcos_cap_v2":
            return _cosine_betas(self.timesteps)
        root = self.beta_schedule == "scaled_linear"
        start, end = (math.sqrt(beta) if root else beta for beta in (self.beta_start, self.beta_end))
        span = max(self.timesteps - 1, 1)
        points = [start + (end - start) * index / span for index in range(self.timesteps)]
        return [point**2 for point in points] if root else points


@dataclass(frozen=True)
class Stepping:
    """Which timesteps are visited, and the cumulative alpha after the last one."""

    spacing: str
    alpha_to_one: bool

    def __str__(self) -> str:
        """Return the stepping in words."""
        last = "alpha 1" if self.alpha_to_one else "the first timestep's alpha"
        return f"{self.spacing} timesteps, ending at {last}"


@dataclass(frozen=True)
class ScheduleConfig:
    """What is followed of a scheduler configuration."""

    scheduler: str
    """The class that the configuration names; empty if it names none."""
    training: TrainingSchedule | FlowTraining
    prediction: str
    stepping: Stepping | FlowStepping

    @property
    def flow(self) -> bool:
        """Whether the model is a rectified flow, and has no betas."""
        return isinstance(self.training, FlowTraining)

    @property
    def kind(self) -> str:
        """What it is the schedule of, in words."""
        return "a rectified flow" if self.flow else "a model with betas"

    def trained_as(self, other: "ScheduleConfig") -> bool:
        """Whether both were trained for the same levels of noise, however these are given."""
        if isinstance(self.training, FlowTraining) or isinstance(other.training, FlowTraining):
            return self.training == other.training
        return self.training.same_as(other.training)


def schedule_problems(config: Mapping[str, Any]) -> list[ScheduleProblem]:
    """Return why models cannot be sampled by a scheduler configuration, one problem for each bad key."""
    if names_flow(config):
        return list(flow_problems(config))
    named = class_name(config)
    if named not in SCHEDULERS and (named or not ("beta_schedule" in config or "trained_betas" in config)):
        return [ScheduleProblem("_class_name", named, f"{shown(named)} {_why_not(named)}")]
    return list(_problems(config)) or list(_vanishing(config))


def folder_problems(folder: Path, config: Mapping[str, Any]) -> list[ScheduleProblem]:
    """Return why the model of a pipeline's folder cannot be sampled by its scheduler configuration.

    A network that is known to be trained with betas is not sampled as a flow, nor the other way around: the file comes
    from another model, and the pictures would look like damage.
    """
    denoiser, flow = _denoiser(folder), names_flow(config)
    if flow and denoiser in WITH_BETAS:
        key = "_class_name" if class_name(config) == EULER else "use_flow_sigmas"
        return [telling(config)(key, f"{_OF_ANOTHER}; it is for flows, and a {denoiser} is trained with betas")]
    problems = schedule_problems(config)
    if not problems and flow and denoiser in _WITHOUT_SIZE and config.get("use_dynamic_shifting"):
        text = f"cannot be followed: the pipeline of a {denoiser} does not tell its scheduler the size of the image"
        return [telling(config)("use_dynamic_shifting", f"{text}; set it to false, and shift to a number")]
    if not problems and not flow and denoiser in FLOWS:
        text = f"{_OF_ANOTHER}; it is for models with betas, and a {denoiser} is trained as a flow"
        return [telling(config)("_class_name", text)]
    return problems


def audit_problem(config: Mapping[str, Any]) -> ScheduleProblem | None:
    """Return why a model cannot be audited by a configuration without problems; None if it can."""
    key, timesteps = "num_train_timesteps", config.get("num_train_timesteps", 1000)
    if timesteps == TRAINING_TIMESTEPS:
        return None
    return ScheduleProblem(key, timesteps, f"{timesteps} is not {TRAINING_TIMESTEPS}")


def prediction_type(config: Mapping[str, Any]) -> str:
    """Return what a configuration says that the model predicts."""
    return str(config.get("prediction_type", FLOW_PREDICTION if class_name(config) == EULER else EPSILON))


def schedule_notes(config: Mapping[str, Any]) -> list[str]:
    """Return what a configuration says without effect, one line each; for a configuration without problems."""
    if names_flow(config):
        return flow_notes(config)
    notes = []
    if (named := class_name(config)) not in ("", "DDIMScheduler"):
        notes.append(f"{named} is not run: every model is stepped by DDIM over the same betas")
    notes += [f"{key}: true has no effect" for key in _OWN_SIGMAS if config.get(key)]
    if config.get("clip_sample"):
        notes.append("clip_sample: true has no effect: latents are not clipped")
    offset = config.get("steps_offset", 1)
    if offset != 1 and config.get("timestep_spacing", "leading") == "leading":
        notes.append(f"steps_offset: {shown(offset)} has no effect: it is 1, as StableDiffusionPipeline sets it")
    return notes


def read_schedule(config: Mapping[str, Any]) -> ScheduleConfig:
    """Return what is followed of a configuration.

    Raises:
        ValueError: it has problems (`schedule_problems`); the message lists them.
    """
    if problems := schedule_problems(config):
        raise ValueError("; ".join(map(str, problems)))
    if names_flow(config):
        training, stepping = read_flow(config)
        return ScheduleConfig(class_name(config), training, FLOW_PREDICTION, stepping)
    return ScheduleConfig(
        scheduler=class_name(config),
        training=_training(config),
        prediction=config.get("prediction_type", EPSILON),
        stepping=Stepping(config.get("timestep_spacing", "leading"), bool(config.get("set_alpha_to_one", True))),
    )


def _training(config: Mapping[str, Any]) -> TrainingSchedule:
    start, end, kind = SCHEDULERS.get(class_name(config), _DDIM_BETAS)
    trained = config.get("trained_betas")
    return TrainingSchedule(
        timesteps=config.get("num_train_timesteps", 1000),
        beta_start=float(config.get("beta_start", start)),
        beta_end=float(config.get("beta_end", end)),
        beta_schedule=config.get("beta_schedule", kind),
        trained_betas=None if trained is None else tuple(map(float, trained)),
        zero_snr=bool(config.get("rescale_betas_zero_snr")),
    )


def describe_schedule(folder: Path) -> Schedule | None:
    """Return the schedule of a pipeline's folder as a message; None if it cannot be followed."""
    config = scheduler_config(folder)
    if config is None or folder_problems(folder, config):
        return None
    read = read_schedule(config)
    described = Schedule(scheduler=read.scheduler, prediction_type=read.prediction, notes=schedule_notes(config))
    if isinstance(read.stepping, FlowStepping):
        described.flow = f"{read.training} over the {read.stepping}"
    else:
        described.timestep_spacing = read.stepping.spacing
        described.set_alpha_to_one = read.stepping.alpha_to_one
        described.betas = str(read.training)
    return described


def scheduler_config(folder: Path) -> dict[str, Any] | None:
    """Return the scheduler configuration of a pipeline's folder; None if there is none that can be read."""
    return _read_config(folder / "scheduler" / FILE)


def _read_config(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _denoiser(folder: Path) -> str:
    """Return the class of a pipeline's UNet or transformer; empty if it is not known."""
    if (folder / "unet").is_dir():
        return _UNET
    return class_name(_read_config(folder / "transformer" / "config.json") or {})


def _why_not(named: str) -> str:
    if "Flow" in named:
        return f"is not followed; of the schedulers of flows, these are: {FOLLOWED}"
    if named.startswith("EDM"):
        return f"has no noise schedule of betas, and is not one of the flows that are followed: {FOLLOWED}"
    if not named:
        return "is missing, and so are the betas: the noise schedule is not known"
    known = f"known are {', '.join(SCHEDULERS)}, and of flows {FOLLOWED}"
    return f"has no noise schedule of betas that is known here; {known}"


def _problems(config: Mapping[str, Any]) -> Iterator[ScheduleProblem]:
    problem = telling(config)
    yield from _flag_problems(config, problem)
    choices: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("prediction_type", PREDICTIONS),
        ("timestep_spacing", SPACINGS),
        ("beta_schedule", BETA_SCHEDULES),
    )
    for key, known in choices:
        if key in config and config[key] not in known and not (key == "beta_schedule" and _trained(config)):
            remedy = _REMEDY_OF_FLOW if config[key] == FLOW_PREDICTION and class_name(config) == DPM_SOLVER else ""
            yield problem(key, f"cannot be followed; it must be one of {', '.join(known)}{remedy}")
    wrong = list(length_problems(config, problem))
    yield from wrong
    if not wrong and _trained(config):
        yield from _trained_problems(config, config.get("num_train_timesteps", 1000), problem)
    for key in ("beta_start", "beta_end") if not _trained(config) else ():
        if key in config and not _is_beta(config[key]):
            yield problem(key, "must be a number above 0 and under 1")
    if config.get("rescale_betas_zero_snr") is True and config.get("prediction_type", EPSILON) == EPSILON:
        yield problem(
            "rescale_betas_zero_snr",
            'cannot be followed with prediction_type "epsilon": at the last timestep, which is pure noise, the noise '
            'says nothing of the picture; set prediction_type to "v_prediction" if the model was trained so, '
            "else rescale_betas_zero_snr to false",
        )


def _flag_problems(config: Mapping[str, Any], problem: Told) -> Iterator[ScheduleProblem]:
    yield from switch_problems(config, _SWITCHES, problem)
    if config.get("thresholding") is True:
        yield problem("thresholding", "cannot be followed: it is for models of pixels, not of latents; set it to false")
    if config.get("predict_epsilon") is False:
        yield problem("predict_epsilon", "cannot be followed: models that predict the sample are not sampled")
    if config.get("use_flow_sigmas") is True:
        text = "cannot be followed: it replaces the betas by a flow"
        yield problem("use_flow_sigmas", f"{text}; for a flow, name {EULER} with flow_shift as its shift")


def _trained_problems(config: Mapping[str, Any], training: int, problem: Told) -> Iterator[ScheduleProblem]:
    betas = config["trained_betas"]
    if not isinstance(betas, list) or not all(map(_is_beta, betas)):
        yield problem("trained_betas", "must be a list of numbers above 0 and under 1")
    elif len(betas) != training:
        yield problem("trained_betas", f"must be as many as num_train_timesteps, {training}, not {len(betas)}")


def _vanishing(config: Mapping[str, Any]) -> Iterator[ScheduleProblem]:
    """Yield the key of betas so large that the last timestep is pure noise, for a model that predicts the noise."""
    if config.get("prediction_type", EPSILON) != EPSILON:
        return
    training = _training(config)
    if math.prod(1 - beta for beta in training.betas()) < _LEAST_ALPHA:
        key = "trained_betas" if _trained(config) else "beta_end"
        value = config.get(key, training.beta_end)
        text = (
            f'{shown(value)} cannot be followed with prediction_type "epsilon": at the last timestep nothing is left '
            "of the picture, so the noise says nothing of it"
        )
        yield ScheduleProblem(key, value, text)


def _trained(config: Mapping[str, Any]) -> bool:
    return config.get("trained_betas") is not None


def _is_beta(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _cosine_betas(timesteps: int) -> list[float]:
    def kept(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    edges = [kept(index / timesteps) for index in range(timesteps + 1)]
    return [min(1 - after / before, 0.999) for before, after in itertools.pairwise(edges)]
