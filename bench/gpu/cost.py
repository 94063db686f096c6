"""The cost of a whole standard audit of Stable Diffusion 1.4 in GPU minutes: rows that are counted, times measured.

The audit is planned on the testbed's catalogue, with its subject, reference, control and concepts, and with the
parameters and steps that the preset has for pictures of 512 pixels. It counts what `unerase audit --dry-run` counts, as
if nothing were in a cache. The judges' own time is that of one CLIP.
"""

import tempfile
from functools import cache
from typing import Any

from google.protobuf import json_format

from bench.gpu.parts import Rig
from bench.published_counts import counts_of, seconds_of
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.planning.presets import PRESETS
from unerase_backend.probing.registry import PROBES
from unerase_backend.runtime.artifacts import ArtifactStore

SUBJECT, CONCEPT = "testbed/uce", "hourglass"
SIDE, STEPS = 512, 50
MODELS = 3
# Of one concept and model, on an A6000, for the evaluations of Lu et al., arXiv 2505.17013, by their authors' code.
PAPER_MINUTES = 135


@cache
def planned() -> Plan:
    """Return the plan of the audit; nothing is computed."""
    descriptions = {name: each.description for registry in (PROBES, ATTACKS) for name, each in registry.all().items()}
    preset = PRESETS["standard"]
    battery = Battery(evaluations=preset.requests(descriptions, SIDE))
    spec = AuditSpec(subject=SUBJECT, concept=CONCEPT, battery=battery, cases=preset.cases, steps=STEPS, seed_base=1)
    with tempfile.TemporaryDirectory() as folder:
        return make_plan(spec, Catalogue.load(), ArtifactStore(folder), descriptions, lambda: 1)


def cost(rig: Rig, plan: Plan) -> dict[str, Any]:
    """Return the minutes of the audit by evaluation, and those of published code one picture a call.

    Raises:
        ValueError: a part that it rests on has no figure.
    """
    if not (rig.sampler_rows and rig.attacked and rig.inverted and {"guided", "unguided"} <= rig.published.keys()):
        raise ValueError("the sampler, the attacks and diffusers' pipeline must have been measured")
    needed = counts_of(plan.cost, plan.spec)
    row = 1 / max(rig.sampler_rows.values())
    gradient_row = min(timed.seconds / rows for rows, timed in rig.attacked.items())
    inversion_step = _inversion_step(rig, plan)
    ours: dict[str, float] = {}
    for each in plan.cost.evaluations:
        counts = needed[each.evaluation]
        attacked, inverted = counts.get("attacked", 0.0), counts.get("inverted", 0.0)
        # Beside its pictures an attack's rows are those of its search.
        rows = 2 * STEPS * each.pictures if attacked or inverted else each.rows
        seconds = rows * row + attacked * gradient_row + inverted * inversion_step
        ours[each.evaluation] = seconds + each.pictures * rig.finishing_seconds
    theirs = seconds_of(needed, _published_seconds(rig, inversion_step))
    return {
        "pictures": plan.cost.pictures,
        "rows": plan.cost.rows,
        "minutes": _minutes(sum(ours.values())),
        "minutes_a_model": _minutes(sum(ours.values()) / MODELS),
        "minutes_by_evaluation": {name: _minutes(seconds) for name, seconds in ours.items()},
        "published_loop_minutes": _minutes(sum(theirs.values())),
        "published_loop_minutes_a_model": _minutes(sum(theirs.values()) / MODELS),
        "paper_minutes_a_model_on_an_a6000": PAPER_MINUTES,
    }


def _published_seconds(rig: Rig, inversion_step: float) -> dict[str, float]:
    """Return the seconds of each operation of published code."""
    guided, unguided = rig.published["guided"], rig.published["unguided"]
    return {
        "guided": guided,
        "noisy": guided,
        "unguided": unguided,
        "completed": guided + unguided,
        "inpainted": 2 * guided + unguided,
        "attacked": rig.attacked[1].seconds,
        "inverted": inversion_step,
        "error": rig.forward[1].seconds,
    }


def _inversion_step(rig: Rig, plan: Plan) -> float:
    """Return the seconds of a step of textual inversion with the audit's batch, from the smallest that was measured."""
    parameters = next(each.parameters for each in plan.spec.battery.evaluations if each.name == "textual-inversion")
    batch, timed = min(rig.inverted.items())
    rows: float = json_format.MessageToDict(parameters)["batch_size"]
    return timed.seconds * rows / batch


def _minutes(seconds: float) -> float:
    return round(seconds / 60, 2)
