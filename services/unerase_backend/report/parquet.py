"""Writes the observations of an audit as one Parquet file, and reads them back without loss.

Each observation is a row, in the order of the report's digest. The file's key-value metadata holds everything else that
the verdict needs, so that the verdict can be computed from the file alone.

    unerase.schema_version  version of this layout, as in "1.2"
    unerase.audit           the audit's id
    unerase.content         canonical JSON of a ReportContent: spec, concept, cases, manifest, number and digest of the
                            observations
    unerase.descriptions    canonical JSON of a ListEvaluationsResponse: the evaluations of the battery, and every
                            required one that it lacks
    unerase.calibrations    JSON object: by evaluation, the Calibration that the audit quoted

The prefixes `selector_`, `judge_` and `second_judge_` each have the columns of `_JUDGED`, which are null if that judge
gave no judgement. `measures` maps a figure's name to its value. Equal observations give equal bytes within one version
of pyarrow.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import json_format
from google.protobuf.message import Message

from unerase._arrow import JUDGES
from unerase.v1.audits_pb2 import ListEvaluationsResponse, ReportContent
from unerase.v1.types_pb2 import EvaluationDescription, Judgement, ModelAccess, ModelRole, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import Calibration
from unerase_backend.report.content import digest_of, needed_descriptions, place
from unerase_backend.report.first_layout import completed
from unerase_backend.report.schema import canonical_json

PARQUET_VERSION = "1.2"
"""The layout's version: the first number changes if older readers fail, the second if something is added."""

ROLE, STATUS, ACCESS = "MODEL_ROLE_", "SAMPLE_STATUS_", "MODEL_ACCESS_"
_NAMED = ("role", "status", "access")

_PLAIN: dict[str, pa.DataType] = {
    "evaluation": pa.string(),
    # "subject", "reference" or "control".
    "role": pa.string(),
    "model": pa.string(),
    "concept": pa.string(),
    "case_index": pa.uint32(),
    "arm": pa.string(),
    "variant": pa.uint32(),
    # "scored", "unscored", "excluded" or "withheld".
    "status": pa.string(),
    "reason": pa.string(),
    "picture_digest": pa.string(),
    "prompt": pa.string(),
    "latent_seed": pa.uint64(),
    "noise_seed": pa.uint64(),
    # "deployed" or "open_weights"; "unspecified" where no guard could act.
    "access": pa.string(),
}
_JUDGED: dict[str, pa.DataType] = {
    # The judge's catalogue name; null where there is no judgement.
    "name": pa.string(),
    "score": pa.float64(),
    "detected": pa.bool_(),
    "label": pa.string(),
    "label_score": pa.float64(),
    # Null if the judge does not compare pictures with texts.
    "similarity": pa.float64(),
}
SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in _PLAIN.items()]
    + [pa.field(f"{judge}_{name}", kind) for judge in JUDGES for name, kind in _JUDGED.items()]
    + [pa.field("measures", pa.map_(pa.string(), pa.float64()), nullable=False)]
)

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True)
class ExportedAudit:
    """The content of a file; `content` has no verdict and no pictures."""

    audit_id: str
    content: ReportContent
    descriptions: list[EvaluationDescription]
    calibrations: dict[str, Calibration]
    observations: list[Observation]


def render_parquet(
    audit_id: str,
    content: ReportContent,
    descriptions: Iterable[EvaluationDescription],
    observations: Iterable[Observation],
) -> bytes:
    """Return the file; it keeps the `descriptions` of the battery's evaluations and the required ones, in their order.

    Raises:
        ValueError: an observation has more judgements than there are judges.
    """
    ordered = sorted(observations, key=place)
    kept = ReportContent(
        spec=content.spec,
        concept=content.concept,
        cases=content.cases,
        manifest=content.manifest,
        observations=len(ordered),
        observations_digest=digest_of(ordered),
        notes=content.notes,
        comparability_digest=content.comparability_digest,
    )
    described = needed_descriptions(descriptions, content.spec.battery.evaluations)
    metadata = {
        "unerase.schema_version": PARQUET_VERSION,
        "unerase.audit": audit_id,
        "unerase.content": canonical_json(kept),
        "unerase.descriptions": canonical_json(ListEvaluationsResponse(evaluations=described)),
        "unerase.calibrations": json.dumps(
            {
                result.name: json.loads(canonical_json(result.calibration))
                for result in content.verdict.evaluations
                if result.HasField("calibration")
            }
        ),
    }
    rows = [row(observation) for observation in ordered]
    columns = {field.name: [row[field.name] for row in rows] for field in SCHEMA}
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def read_parquet(file: bytes) -> ExportedAudit:
    """Return the content of a file.

    Raises:
        ValueError: the file is not Parquet, is damaged, was not made by unerase, has another major version, or its rows
            were changed after the export.
    """
    try:
        table = pq.read_table(pa.BufferReader(file))
    except (pa.ArrowException, OSError) as error:
        # Arrow's message has several lines; the first says what is wrong.
        raise ValueError(f"it is not a complete Parquet file ({str(error).splitlines()[0]})") from None
    metadata = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (table.schema.metadata or {}).items()
    }
    version = metadata.get("unerase.schema_version", "")
    if not version:
        raise ValueError("it holds no observations of an audit: the Parquet file was not made by unerase")
    if version.partition(".")[0] != PARQUET_VERSION.partition(".")[0]:
        raise ValueError(f"its layout has version {version}; this installation reads {PARQUET_VERSION}")
    if "access" not in table.column_names and version in ("1.0", "1.1"):
        table = _with_access(table)
    if not table.schema.remove_metadata().equals(SCHEMA):
        raise ValueError("its columns are not those of an audit's observations")
    content = _parsed(metadata, "unerase.content", ReportContent())
    descriptions = list(_parsed(metadata, "unerase.descriptions", ListEvaluationsResponse()).evaluations)
    if version == "1.0":
        descriptions = completed(descriptions)
    calibrations = _calibrations(metadata)
    observations = _observations(table)
    if digest_of(observations) != content.observations_digest:
        raise ValueError("its rows are not those that were exported: some were changed, removed or added")
    return ExportedAudit(metadata.get("unerase.audit", ""), content, descriptions, calibrations, observations)


def _with_access(table: pa.Table) -> pa.Table:
    """Return the table of an earlier layout with the column of accesses, which no model had a choice of."""
    place, field = SCHEMA.get_field_index("access"), SCHEMA.field("access")
    return table.add_column(place, field, pa.array(["unspecified"] * len(table), field.type))


def row(observation: Observation) -> dict[str, Any]:
    """Return an observation as a row, with every column of SCHEMA.

    Raises:
        ValueError: it has more judgements than there are judges.
    """
    if len(observation.judgements) > len(JUDGES):
        raise ValueError(f"an observation of {observation.evaluation} has {len(observation.judgements)} judgements")
    row: dict[str, Any] = {name: getattr(observation, name) for name in _PLAIN if name not in _NAMED}
    row["role"] = _word(ModelRole.Name(observation.role), ROLE)
    row["status"] = _word(SampleStatus.Name(observation.status), STATUS)
    row["access"] = _word(ModelAccess.Name(observation.access), ACCESS)
    for position, judge in enumerate(JUDGES):
        given = observation.judgements[position] if position < len(observation.judgements) else None
        row |= {f"{judge}_{name}": value for name, value in _said(given).items()}
    row["measures"] = sorted(observation.measures.items())
    return row


def _said(given: Judgement | None) -> dict[str, Any]:
    if given is None:
        return dict.fromkeys(_JUDGED)
    return {
        "name": given.judge,
        "score": given.score,
        "detected": given.detected,
        "label": given.label,
        "label_score": given.label_score,
        "similarity": given.similarity if given.HasField("similarity") else None,
    }


def _observations(table: pa.Table) -> list[Observation]:
    try:
        return [_observation(row) for row in table.to_pylist()]
    except (ValueError, TypeError, UnicodeDecodeError):
        raise ValueError("one of its rows is not an observation") from None


def _observation(row: dict[str, Any]) -> Observation:
    observation = Observation(
        role=ModelRole.Value(ROLE + row["role"].upper()),
        status=SampleStatus.Value(STATUS + row["status"].upper()),
        access=ModelAccess.Value(ACCESS + row["access"].upper()) or None,
    )
    for name in _PLAIN:
        if name not in _NAMED:
            setattr(observation, name, row[name])
    for judge in JUDGES:
        said = {name: row[f"{judge}_{name}"] for name in _JUDGED}
        if said["name"] is not None:
            judged = {name: value for name, value in said.items() if name != "name" and value is not None}
            observation.judgements.add(judge=said["name"], **judged)
    observation.measures.update(dict(row["measures"]))
    return observation


def _calibrations(metadata: dict[str, str]) -> dict[str, Calibration]:
    try:
        quoted = json.loads(metadata.get("unerase.calibrations", "{}"))
        return {name: json_format.ParseDict(known, Calibration()) for name, known in quoted.items()}
    except (json.JSONDecodeError, json_format.ParseError, AttributeError):
        raise ValueError("its metadata unerase.calibrations cannot be read") from None


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _parsed(metadata: dict[str, str], key: str, message: AnyMessage) -> AnyMessage:
    try:
        # A later minor version may have added fields.
        return json_format.Parse(metadata.get(key, ""), message, ignore_unknown_fields=True)
    except json_format.ParseError:
        raise ValueError(f"its metadata {key} cannot be read") from None
