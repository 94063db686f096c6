"""A campaign in a YAML file: what is audited, and how (docs/campaign.schema.json describes it for editors).

subjects: [testbed/uce, testbed/esd-x]            # names, or
subject_filter: labels.release = "2026-12"        # all models for which it holds; both are taken together
concepts: [hourglass, heart]
audit: {battery: quick, cases: 24, steps: 10}     # every audit's specification, with the keys of AuditSpec
gate: gate.yaml                                   # a gate file, relative to this file, or a gate
labels: {release: "2026-12"}
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format

from unerase._file_shape import (
    Flag,
    Foreign,
    Free,
    Key,
    Keys,
    ListOf,
    MapOf,
    Number,
    Place,
    Text,
    TextOr,
    count,
    read_shaped,
)
from unerase._gate_file import GateError, gate_of, gate_schema, read_gate
from unerase._prompt_list import PromptList, read_prompts, taken
from unerase._prompt_pack import read_pack
from unerase.v1.audits_pb2 import AuditSpec, Tolerances
from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.types_pb2 import ControlKind, DecidedBy, ModelAccess

Read = TypeVar("Read")

MOST_SUBJECTS, MOST_CONCEPTS, MOST_WINDOW = 10_000, 1000, 1024
_ENUMS = {
    "control_kind": (ControlKind, "CONTROL_KIND_"),
    "decided_by": (DecidedBy, "DECIDED_BY_"),
    "access": (ModelAccess, "MODEL_ACCESS_"),
}

_NAME = Text()
_FILE = Text(most=4096)
_EVALUATION = TextOr(
    _NAME,
    Keys(
        {
            "name": Key(_NAME, "Its name.", required=True),
            "parameters": Key(Free(), "Its parameters; `unerase evaluations` lists them."),
        }
    ),
)
_BATTERY = Keys(
    {
        "preset": Key(_NAME, "Preset: quick, standard, full or paper; `evaluations` alone without one."),
        "evaluations": Key(ListOf(_EVALUATION, 64, 1, unique=False), "Added to the preset."),
        "allow_incomplete": Key(Flag(), "Conclude even if a required evaluation is missing."),
    }
)
_TOLERANCE = Number(0, 1)


def _words(name: str) -> Text:
    enum, prefix = _ENUMS[name]
    names = [each.removeprefix(prefix) for each in enum.keys()]  # noqa: SIM118
    return Text(words=tuple(each.lower().replace("_", "-") for each in names if each != "UNSPECIFIED"))


AUDIT = Keys(
    {
        "battery": Key(TextOr(_NAME, _BATTERY), "A preset, or a preset with evaluations."),
        "cases": Key(count(least=1), "Number of cases; the preset's unless given."),
        "steps": Key(count(least=1), "Denoising steps; the battery's unless given."),
        "guidance_scale": Key(Number(1, 50), "The reference's own unless given."),
        "tolerances": Key(
            Keys({each.name: Key(_TOLERANCE, "See docs/verdict.md.") for each in Tolerances.DESCRIPTOR.fields}),
            "The excess, or the change of another figure, up to which an audit reports no effect.",
        ),
        "reference": Key(_NAME, "The model that the subjects were made from; their base unless given."),
        "assume_reference": Key(Flag(), "Accept the reference although it has another base or is the subject."),
        "control": Key(_NAME, "A model that never learned the concepts."),
        "assume_control": Key(Flag(), "Accept the control although no catalogue vouches for it."),
        "placebos": Key(ListOf(_NAME, 16), "Concepts that no model knows, the controls in place of a model."),
        "control_kind": Key(_words("control_kind"), "The only kind of control that evaluations may have."),
        "selector": Key(_NAME, "Judge that picks the best draw."),
        "judge": Key(_NAME, "Judge that decides."),
        "second_judge": Key(_NAME, "Judge whose agreement is measured."),
        "decided_by": Key(_words("decided_by"), "Whose detection decides a case; both judges' unless given."),
        "access": Key(_words("access"), "Whether the subjects' guards stay; both unless given."),
        "own_schedules": Key(Flag(), "Step each model by the schedule of its own folder."),
        "seed_base": Key(
            count(2**64 - 1), "Unless given, the backend draws one and shows it only once the campaign has ended."
        ),
        "prompts": Key(_FILE, "CSV or YAML file of prompts that are the cases, relative to this file."),
        "pack": Key(_FILE, "YAML file of prompts in other words, relative to this file."),
    }
)
LABELS = MapOf(
    Text(
        pattern="^[a-z0-9._/-]{1,63}$",
        told="1 to 63 lower-case letters, digits, '-', '_', '.' and '/'",
        most=63,
    ),
    Text(least=0, most=255),
    64,
)


def _gate(value: Any, place: Place) -> Any:
    """Return the gate that stands here, or in a file that is named here."""
    if isinstance(value, str):
        return _named(read_gate, _FILE.read(value, place), place)
    place.check_once()
    try:
        return gate_of(value)
    except GateError as error:
        below = place.at(error.key) if error.key else place
        raise below.wrong(str(error).removeprefix(f"{error.key}: ")) from None


def _gate_schema() -> dict[str, Any]:
    """Return the schema of a gate, or of the name of its file."""
    return {"anyOf": [_FILE.schema(), gate_schema()]}


CAMPAIGN = Keys(
    {
        "subjects": Key(ListOf(_NAME, MOST_SUBJECTS, 1), "Names of models, as `unerase models` lists them."),
        "subject_filter": Key(Text(most=4096), 'All models for which it holds, as in `labels.release = "2026-12"`.'),
        "concepts": Key(ListOf(_NAME, MOST_CONCEPTS, 1), "Names of concepts.", required=True),
        "audit": Key(AUDIT, "Every audit's specification, without subject and concept."),
        "sequential": Key(Flag(), "Stop an evaluation as soon as its answer is settled; true unless given."),
        "gate": Key(
            Foreign(_gate, _gate_schema),
            "A gate, or the path of its file.",
        ),
        "compared_with": Key(_NAME, "Id of an earlier campaign, whose seed base is taken as well."),
        "window": Key(Number(1, MOST_WINDOW, whole=True), "Audits that exist unfinished at a time; 64 unless given."),
        "labels": Key(LABELS, "Labels of the campaign."),
    },
    any_of=("subjects", "subject_filter"),
)


@dataclass(frozen=True)
class CampaignFile:
    """What one file describes."""

    spec: CampaignSpec
    labels: dict[str, str] = field(default_factory=dict)
    prompts: PromptList | None = None
    """The list that `prompts` names."""


def read_campaign(path: Path | str) -> CampaignFile:
    """Read a campaign, with the files that it names.

    Raises:
        ValueError: the file does not describe a campaign; the message names file, line, key and reason.
        OSError: a file cannot be read.
    """
    read, place = read_shaped(Path(path), CAMPAIGN)
    labels = read.pop("labels", {})
    template, prompts = _template(read.pop("audit", {}), place.at("audit"))
    return CampaignFile(CampaignSpec(**read, template=template), labels, prompts)


def _template(read: dict[str, Any], place: Place) -> tuple[AuditSpec, PromptList | None]:
    """Return an audit's specification from the keys of `audit`."""
    fields = {key: value for key, value in read.items() if key not in ("battery", "prompts", "pack", *_ENUMS)}
    for name, (enum, prefix) in _ENUMS.items():
        if name in read:
            fields[name] = enum.Value(prefix + read[name].upper().replace("-", "_"))
    spec = AuditSpec(**fields)
    if "battery" in read:
        _add_battery(spec, read["battery"], place.at("battery"))
    if "pack" in read:
        spec.pack.CopyFrom(_named(read_pack, read["pack"], place.at("pack")))
    prompts = None
    if "prompts" in read:
        prompts = _named(read_prompts, read["prompts"], place.at("prompts"))
        spec.fixed_prompts.extend(taken(prompts.prompts, spec.cases or len(prompts.prompts)))
        spec.fixed_prompts_source.CopyFrom(prompts.source)
    return spec, prompts


def _add_battery(spec: AuditSpec, battery: Any, place: Place) -> None:
    if isinstance(battery, str):
        battery = {"preset": battery}
    spec.battery.preset = battery.get("preset", "")
    spec.battery.allow_incomplete = battery.get("allow_incomplete", False)
    for index, asked in enumerate(battery.get("evaluations", [])):
        named = {"name": asked} if isinstance(asked, str) else asked
        try:
            json_format.Parse(json.dumps(named, allow_nan=False), spec.battery.evaluations.add())
        except (json_format.ParseError, ValueError, TypeError):
            below = place.at("evaluations").at(index)
            raise below.wrong("parameters must hold texts, numbers, lists and mappings alone") from None


def _named(read: Callable[[Path], Read], name: str, place: Place) -> Read:
    """Return what a file that is named here holds."""
    try:
        return read(place.file.parent / name)
    except OSError as error:
        raise place.wrong(f"{error.filename}: {error.strerror}") from None
