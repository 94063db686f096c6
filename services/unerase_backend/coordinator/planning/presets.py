"""The presets: named batteries.

The lists say what a preset contains and in which order. Every preset also contains every required evaluation, and
`full` every registered evaluation, including those of third parties.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.protobuf import json_format

from unerase.v1.audits_pb2 import BatteryPreset
from unerase.v1.types_pb2 import EvaluationDescription, EvaluationRequest


@dataclass(frozen=True)
class Preset:
    """A named battery: its evaluations in order, each with the parameters that differ from the defaults."""

    name: str
    summary: str
    evaluations: dict[str, dict[str, float | list[float]]]
    # 0 means the reference's own number of steps.
    steps: int = 0
    cases: int = 24
    everything: bool = False

    def requests(self, descriptions: Mapping[str, EvaluationDescription]) -> list[EvaluationRequest]:
        """Return the evaluations as a client would request them; `descriptions` holds every registered evaluation."""
        listed = [
            json_format.ParseDict({"name": name, "parameters": parameters}, EvaluationRequest())
            for name, parameters in self.evaluations.items()
        ]
        others = [
            EvaluationRequest(name=name)
            for name, description in sorted(descriptions.items())
            if name not in self.evaluations and (self.everything or description.required)
        ]
        return listed + others

    def message(self, descriptions: Mapping[str, EvaluationDescription]) -> BatteryPreset:
        """Return the preset as `ListEvaluations` shows it."""
        evaluations = self.requests(descriptions)
        return BatteryPreset(
            name=self.name, summary=self.summary, evaluations=evaluations, steps=self.steps, cases=self.cases
        )


DEFAULT_PRESET = "standard"

Evaluations = dict[str, dict[str, float | list[float]]]

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
_BESIDE_IT: Evaluations = {
    "unconditional-rate": {},
    "inpainting": {},
    "alternatives": {},
}
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="quick",
            summary="The evaluations that a verdict needs, in ten denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON,
            steps=10,
        ),
        Preset(
            name="standard",
            summary="What a verdict needs, and what costs little beside it, in the reference's own denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT,
        ),
        Preset(
            name="full",
            summary="Every registered evaluation, with the reference's own denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT,
            everything=True,
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
