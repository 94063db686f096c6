"""How often published code would need each operation of `bench.published_loop` for an audit, from the audit's own cost.

Nothing is padded, and nothing is taken from one script to another except the pictures that `alternatives` looks at:
those of the standard prompt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from unerase.v1.audits_pb2 import AuditCost, AuditSpec

Counts = Mapping[str, float]


@dataclass(frozen=True)
class Asked:
    """What an audit's cost states for one evaluation, and the parameters with which it was asked for."""

    pictures: int
    rows: int
    """Of the denoising network."""
    parameters: Mapping[str, Any]
    steps: int
    """Denoising steps of a picture."""


def _inverted(asked: Asked) -> Counts:
    steps = (asked.rows - 2 * asked.steps * asked.pictures) / asked.parameters["batch_size"]
    return {"guided": asked.pictures, "inverted": steps}


def _attacked(asked: Asked) -> Counts:
    # The cost's rows are those of padded batches; the loop's follow from the pictures, one after each round.
    rounds = asked.parameters["timesteps"]
    steps = asked.pictures * rounds / (1 + rounds) * asked.parameters["iterations"]
    return {"guided": asked.pictures, "attacked": steps}


COUNTED: Mapping[str, Callable[[Asked], Counts]] = {
    "standard-prompt": lambda asked: {"guided": asked.pictures},
    "noise-based": lambda asked: {"noisy": asked.pictures / 2, "guided": asked.pictures / 2},
    "diffusion-completion": lambda asked: {"completed": asked.pictures / 3},
    "textual-inversion": _inverted,
    "unlearn-diff-atk": _attacked,
    "interference": lambda asked: {"guided": asked.pictures},
    "likelihood": lambda asked: {"error": asked.rows},
    # It makes no picture; what it judges is counted by no cost, and is left out.
    "judge-quality": lambda asked: {},
    "unconditional-rate": lambda asked: {"unguided": asked.pictures},
    "inpainting": lambda asked: {"inpainted": asked.pictures / 3},
    # The first picture of each case is the standard prompt's.
    "alternatives": lambda asked: {"guided": asked.pictures - asked.pictures / asked.parameters["draws"]},
}
"""The evaluations of the preset `standard`."""


def counts_of(cost: AuditCost, spec: AuditSpec) -> dict[str, Counts]:
    """Return the counts of each evaluation of an audit, by evaluation; `spec` has every default filled in.

    Raises:
        KeyError: there is no transcription of one of them.
    """
    parameters = {each.name: json_format.MessageToDict(each.parameters) for each in spec.battery.evaluations}
    return {
        each.evaluation: COUNTED[each.evaluation](
            Asked(each.pictures, each.rows, parameters[each.evaluation], spec.steps)
        )
        for each in cost.evaluations
    }


def seconds_of(needed: Mapping[str, Counts], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return what each evaluation takes, from the seconds of each operation."""
    return {name: sum(count * seconds[operation] for operation, count in each.items()) for name, each in needed.items()}
