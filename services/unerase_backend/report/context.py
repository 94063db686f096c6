"""Where other models stand on the plane: figures of finished audits, shown beside those of an audit for comparison.

`context.json` holds them for each reference and concept of the testbed; `python -m tools.context DIR` writes it from
the JSON reports of a folder. A model's figures belong to its reference, so the reference is known by its digest: for
other weights of the same name there is no context. They are not findings of the audit that shows them, and no part of
its content.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import json_format

from unerase.v1.audits_pb2 import ReportContent
from unerase.v1.verdicts_pb2 import Estimate


@dataclass(frozen=True)
class ContextPoint:
    """One model's figures."""

    model: str
    method: str
    """The published method of its erasure; empty where there is none."""
    digest: str
    destruction: Estimate
    lost_pull: Estimate
    general_damage: Estimate

    @property
    def name(self) -> str:
        """The method's name, else the last part of the model's."""
        return self.method or self.model.rpartition("/")[2]


@dataclass(frozen=True)
class Context:
    """The models of one reference and concept, and where their figures come from."""

    source: str
    points: list[ContextPoint]


def context_of(content: ReportContent) -> Context | None:
    """Return the context of an audit, less the audit's own models; None where there is none for its reference."""
    digests = {model.name: model.digest for model in content.manifest.models}
    spec = content.spec
    for group in _groups():
        if (group["concept"], group["reference"]) == (content.concept.name, digests.get(spec.reference)):
            # The reference stands at the origin by definition, so it has no figures there.
            own = {digests.get(name) for name in (spec.subject, spec.reference, spec.control)}
            points = [_point(entry) for entry in group["models"]]
            return Context(group["source"], [point for point in points if point.digest not in own])
    return None


@cache
def _groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = json.loads(files("unerase_backend.report").joinpath("context.json").read_text())
    return groups


def _point(entry: dict[str, Any]) -> ContextPoint:
    return ContextPoint(
        model=entry["model"],
        method=entry["method"],
        digest=entry["digest"],
        destruction=json_format.ParseDict(entry["destruction"], Estimate()),
        lost_pull=json_format.ParseDict(entry["lost_pull"], Estimate()),
        general_damage=json_format.ParseDict(entry["general_damage"], Estimate()),
    )
