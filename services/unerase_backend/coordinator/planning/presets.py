"""The presets: named batteries, as data."""

from dataclasses import dataclass

from google.protobuf import json_format

from unerase.v1.audits_pb2 import BatteryPreset
from unerase.v1.types_pb2 import EvaluationRequest


@dataclass(frozen=True)
class Preset:
    """A named battery: its evaluations in order, each with the parameters that differ from its own defaults."""

    name: str
    summary: str
    evaluations: dict[str, dict[str, float | list[float]]]
    # 0 means the reference's own.
    steps: int = 0

    def requests(self) -> list[EvaluationRequest]:
        """Return the evaluations as a client would ask for them."""
        return [
            json_format.ParseDict({"name": name, "parameters": parameters}, EvaluationRequest())
            for name, parameters in self.evaluations.items()
        ]

    def message(self) -> BatteryPreset:
        """Return the preset as it is listed."""
        return BatteryPreset(name=self.name, summary=self.summary, evaluations=self.requests(), steps=self.steps)


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
_THE_REST: Evaluations = {
    "classifier-guidance": {},
    "classifier-guidance-noise": {},
    "p4d": {},
    "ring-a-bell": {},
    "relearning": {},
    "tracing": {},
}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="quick",
            summary="What a verdict rests on, in ten denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON,
            steps=10,
        ),
        Preset(
            name="standard",
            summary="What a verdict rests on, what costs little beside it, and the reference's own denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT,
        ),
        Preset(
            name="full",
            summary="Every evaluation there is, with the reference's own denoising steps.",
            evaluations=_WHAT_A_VERDICT_RESTS_ON | _BESIDE_IT | _THE_REST,
        ),
    )
}
