"""The presets: named batteries.

The lists say what a preset contains and in which order. Every preset also contains every required evaluation, and
`full` and `paper` every registered evaluation, including those of third parties.

The evaluations' defaults suit the testbed's models. For models of real size, whose pictures have `REAL_SIDE` pixels a
side or more, a preset has parameters of its own, from the papers of the attacks; `paper` has their whole budgets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf import json_format

from unerase.v1.audits_pb2 import BatteryPreset
from unerase.v1.types_pb2 import EvaluationDescription, EvaluationRequest

REAL_SIDE = 256

Evaluations = dict[str, dict[str, float | list[float]]]


@dataclass(frozen=True)
class Preset:
    """A named battery: its evaluations in order, each with the parameters that differ from the defaults."""

    name: str
    summary: str
    evaluations: Evaluations
    # 0 means the reference's own number of steps.
    steps: int = 0
    cases: int = 24
    everything: bool = False
    # For models of real size: parameters by evaluation, and steps.
    at_real_size: Evaluations = field(default_factory=dict)
    steps_at_real_size: int = 0

    def steps_for(self, resolution: int) -> int:
        """Return the denoising steps for pictures of so many pixels a side; 0 means the reference's own."""
        return self.steps_at_real_size if resolution >= REAL_SIDE else self.steps

    def requests(
        self, descriptions: Mapping[str, EvaluationDescription], resolution: int = 0
    ) -> list[EvaluationRequest]:
        """Return the evaluations as a client would request them, for pictures of so many pixels a side.

        `descriptions` holds every registered evaluation.
        """
        others: Evaluations = {
            name: {}
            for name, description in sorted(descriptions.items())
            if name not in self.evaluations and (self.everything or description.required)
        }
        chosen = self.evaluations | others
        if resolution >= REAL_SIDE:
            chosen |= {name: given for name, given in self.at_real_size.items() if name in chosen}
        return [
            json_format.ParseDict({"name": name, "parameters": parameters}, EvaluationRequest())
            for name, parameters in chosen.items()
        ]

    def message(self, descriptions: Mapping[str, EvaluationDescription]) -> BatteryPreset:
        """Return the preset as `ListEvaluations` shows it."""
        return BatteryPreset(
            name=self.name,
            summary=self.summary,
            evaluations=self.requests(descriptions),
            steps=self.steps,
            cases=self.cases,
            real_size_evaluations=self.requests(descriptions, REAL_SIDE),
            real_size_steps=self.steps_for(REAL_SIDE),
        )


DEFAULT_PRESET = "standard"

_WHAT_A_VERDICT_RESTS_ON: Evaluations = {
    "standard-prompt": {},
    "noise-based": {},
    "diffusion-completion": {},
    "textual-inversion": {},
    "unlearn-diff-atk": {},
    "interference": {},
    "likelihood": {},
    "judge-quality": {},
}
# From 46 cases on, one false positive among them leaves the upper bound of the excess under 0.10 (`unerase power`).
_CASES_THAT_BEAR_AN_ERROR = 48

_BESIDE_IT: Evaluations = {
    "unconditional-rate": {},
    "inpainting": {},
    "alternatives": {},
}
# The budgets of the papers on Stable Diffusion 1.4, which each attack's module names.
_PAPER: Evaluations = {
    "textual-inversion": {"steps": 3000, "batch_size": 4, "learning_rate": 2e-3, "tokens": 1},
    "unlearn-diff-atk": {"timesteps": 50, "iterations": 40, "tokens": 3},
    "p4d": {"starts": 1, "iterations": 3000, "tokens": 16},
    "ring-a-bell": {"population": 200, "generations": 3000, "tokens": 16, "scale": 3},
    # A UNet of this size is fine-tuned at a smaller learning rate; every checkpoint stores all of it.
    "relearning": {"steps": [100], "batch_size": 4, "learning_rate": 1e-5},
}
_STANDARD_AT_REAL_SIZE = _PAPER | {"unlearn-diff-atk": {"timesteps": 20, "iterations": 40, "tokens": 3}}
_QUICK_AT_REAL_SIZE: Evaluations = {
    "textual-inversion": _PAPER["textual-inversion"] | {"steps": 1000},
    "unlearn-diff-atk": {"timesteps": 5, "iterations": 40, "tokens": 3},
}
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="quick",
            summary="The evaluations that a verdict needs, in ten denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON,
            steps=10,
            at_real_size=_QUICK_AT_REAL_SIZE,
            steps_at_real_size=20,
        ),
        Preset(
            name="standard",
            summary="What a verdict needs, and what costs little beside it, in the reference's own denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT,
            cases=_CASES_THAT_BEAR_AN_ERROR,
            at_real_size=_STANDARD_AT_REAL_SIZE,
        ),
        Preset(
            name="full",
            summary="Every registered evaluation, with the reference's own denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT,
            cases=_CASES_THAT_BEAR_AN_ERROR,
            everything=True,
            at_real_size=_STANDARD_AT_REAL_SIZE,
        ),
        Preset(
            name="paper",
            summary="As full; for models of real size, each attack with the whole budget of its paper.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT,
            cases=_CASES_THAT_BEAR_AN_ERROR,
            everything=True,
            at_real_size=_PAPER,
        ),
    )
}


def planned_descriptions(
    battery: Iterable[EvaluationRequest], descriptions: Mapping[str, EvaluationDescription]
) -> list[EvaluationDescription]:
    """Return the descriptions that a verdict needs: those of the battery's evaluations and of every required one.

    The evaluations that this module lists come first. The verdict names evaluations in this order.
    """
    chosen = {request.name for request in battery} | {name for name, one in descriptions.items() if one.required}
    listed = _WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT
    names = [name for name in listed if name in chosen] + sorted(chosen - listed.keys())
    return [descriptions[name] for name in names]
