"""A report as versioned JSON, and the JSON Schema of that JSON.

The JSON is protobuf's, with the field names of the contract. 64-bit integers are strings, bytes are base64, and numbers
that are not finite are one of the strings "NaN", "Infinity" and "-Infinity". Keys are sorted, fields without presence
are always written, and floats have the shortest form that reads back as the same number, so that equal messages give
equal bytes.
"""

import json
import sys
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from unerase.v1.audits_pb2 import Report
from unerase.v1.campaigns_pb2 import CampaignReport

SCHEMA_VERSION = "1.5"
"""The report's version: the first number changes if older readers fail, the second if something is added."""

CAMPAIGN_SCHEMA_VERSION = "1.0"
"""The version of a campaign's report, likewise."""

_JSON_OF_WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object"},
    # Any value.
    "google.protobuf.Value": {},
}

_DOUBLE = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}

_JSON_OF_TYPE: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: _DOUBLE,
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]{1,20}$"},
}


def canonical_json(message: Message, *, indent: int | None = None) -> str:
    """Return a message as JSON; equal messages give equal text."""
    content = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        content, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
    )


def render_json(report: Report) -> str:
    """Return the report as JSON that follows docs/report.schema.json, with a line feed at the end."""
    return canonical_json(report, indent=1) + "\n"


def report_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an audit's report, made from the contract's descriptor."""
    return _schema(Report.DESCRIPTOR, "unerase audit report", SCHEMA_VERSION)


def campaign_report_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a campaign's report, made from the contract's descriptor."""
    return _schema(CampaignReport.DESCRIPTOR, "unerase campaign report", CAMPAIGN_SCHEMA_VERSION)


def _schema(message: Descriptor, title: str, version: str) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    _define(message, definitions)
    root = definitions.pop(message.name)
    root["properties"]["schema_version"] = {"const": version}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _define(message: Descriptor, definitions: dict[str, Any]) -> None:
    if message.name in definitions:
        return
    definitions[message.name] = {}
    fields = message.fields
    definitions[message.name] = {
        "type": "object",
        "properties": {field.name: _schema_of(field, definitions) for field in fields},
        "required": [field.name for field in fields if not field.has_presence],
        "additionalProperties": False,
    }


def _schema_of(field: FieldDescriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _schema_of_one(value, definitions)}
    one = _schema_of_one(field, definitions)
    return {"type": "array", "items": one} if field.is_repeated else one


def _schema_of_one(field: FieldDescriptor, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        well_known = _JSON_OF_WELL_KNOWN.get(field.message_type.full_name)
        if well_known is not None:
            return well_known
        _define(field.message_type, definitions)
        return {"$ref": f"#/$defs/{field.message_type.name}"}
    if field.enum_type is not None:
        return {"enum": _names(field.enum_type)}
    return _JSON_OF_TYPE[field.type]


def _names(enum: EnumDescriptor) -> list[str]:
    return [value.name for value in enum.values]


if __name__ == "__main__":
    # `python -m unerase_backend.report.schema campaign` for a campaign's.
    print(json.dumps(campaign_report_schema() if "campaign" in sys.argv[1:] else report_schema(), indent=1))
