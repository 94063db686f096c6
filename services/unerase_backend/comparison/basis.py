"""The basis of an audit: everything but its subject that its answer depends on, as its report records it.

Two audits whose bases are equal differ in nothing but the subject. The *comparability digest* is the SHA-256 over the
basis, so that two reports say at a glance whether they may be compared. What is in it, by name:

    concept           the whole concept, with the prompt pack that was used, without its control and its blurring
    cases             prompts, latent seeds, held-out prompts and guidance of their own
    seed base         every other seed follows from it
    battery           evaluations by name, with all parameters, deciding arms and the digest of their source, and why
                      one does not apply to the models
    steps, guidance   of the audit
    schedule          that of the reference, by which every model is stepped, or that each is stepped by its own
    reference         the digest of its weights, and its name if the manifest does not have it
    selector, judge, second judge
                      digest over files and options, and threshold; the name of a judge that has no digest
    decided by, access
    controls          the kind of control that each evaluation had
    numerics profile  what fixes the bits of a result besides the request

Names of models and judges that have a digest, tolerances, tenants, times and versions are no part of it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from unerase.v1.audits_pb2 import JudgeRecord, ReportContent
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, ControlKind, DecidedBy, ModelAccess
from unerase_backend.verdict import controls
from unerase_backend.verdict.draws import who_decides

JUDGES = ("selector", "judge", "second judge")

REFERENCE, ACCESS, CONTROLS, NUMERICS, BATTERY = "reference", "access", "controls", "numerics profile", "battery"

_SHOWN = 12
"""Characters of a digest that tell two values apart in a sentence."""


def comparability_digest(content: ReportContent) -> str:
    """Return the SHA-256 over an audit's basis, hexadecimal; `content` needs its verdict, of which controls' kinds."""
    return _digest(basis_of(content))


def basis_of(content: ReportContent) -> dict[str, Any]:
    """Return the basis of an audit by the names above, each part as JSON's types."""
    spec, manifest = content.spec, content.manifest
    reference = recorded_model(content, spec.reference)
    judges = {judge.name: judge for judge in manifest.judges}
    names = zip(JUDGES, (spec.selector, spec.judge, spec.second_judge), strict=True)
    return {
        "concept": _concept(content),
        "cases": [_plain(case) for case in sorted(content.cases, key=lambda case: case.index)],
        "seed base": str(spec.seed_base) if spec.HasField("seed_base") else "",
        BATTERY: setups_of(content),
        "steps": spec.steps,
        "guidance": spec.guidance_scale if spec.HasField("guidance_scale") else None,
        "schedule": "of its own" if spec.own_schedules else _plain(reference.schedule),
        REFERENCE: weights_of(reference),
        **{role: _judge(judges.get(name), name, manifest.judge_digests.get(name, "")) for role, name in names},
        "decided by": DecidedBy.Name(who_decides(spec)),
        ACCESS: ModelAccess.Name(spec.access),
        CONTROLS: {result.name: ControlKind.Name(controls.kind_of(result)) for result in content.verdict.evaluations},
        NUMERICS: manifest.numerics_profile,
    }


def setups_of(content: ReportContent) -> dict[str, dict[str, Any]]:
    """Return how each evaluation of the battery ran, by its name: "parameters", "deciding arms" and "code".

    Of one that does not apply to the audit's models there is "not applicable" as well, with the reason.
    """
    described = {description.name: description for description in content.descriptions}
    setups = {}
    for request in content.evaluations or content.spec.battery.evaluations:
        description = described.get(request.name)
        declared = description.parameters if description is not None else ()
        defaults = {parameter.name: json_format.MessageToDict(parameter.default_value) for parameter in declared}
        setups[request.name] = {
            "parameters": defaults | json_format.MessageToDict(request.parameters),
            "deciding arms": sorted(description.deciding_arms) if description is not None else [],
            "code": description.source_digest if description is not None else "",
            **({"not applicable": request.not_applicable.reason} if request.HasField("not_applicable") else {}),
        }
    return setups


def recorded_model(content: ReportContent, name: str) -> Model:
    """Return a model as the manifest records it; with its name alone if the manifest does not have it."""
    return next((model for model in content.manifest.models if model.name == name), Model(name=name))


def weights_of(model: Model) -> str:
    """Return the digest of a model without its guards; its name if it has no digest."""
    return model.weights_digest or model.digest or f"named {model.name}"


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names of the parts in which two bases differ, in their order."""
    return [name for name in first if first[name] != second[name]]


def shortened(value: Any) -> str:
    """Return a value in a few words: a short one as it is, any other by the beginning of its digest."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(text) <= 4 * _SHOWN and not isinstance(value, list | dict):
        return text
    counted = f"{len(value)} with the " if isinstance(value, list) else ""
    return f"{counted}digest {_digest(value)[:_SHOWN]}"


def _concept(content: ReportContent) -> dict[str, Any]:
    concept = Concept()
    concept.CopyFrom(content.concept)
    if content.spec.HasField("pack"):
        concept.pack.CopyFrom(content.spec.pack)
    concept.pack.ClearField("source")
    if not concept.pack.kinds:
        concept.ClearField("pack")
    for field in ("control", "sensitive"):
        concept.ClearField(field)
    return _plain(concept)


def _judge(record: JudgeRecord | None, name: str, digest: str) -> str:
    if record is None or not record.digest:
        return digest or f"named {name}"
    return f"{record.digest}, threshold {record.threshold!r}" if record.HasField("threshold") else record.digest


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
