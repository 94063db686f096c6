"""Figures of other models from finished audits, shown on the plane beside those of an audit for comparison.

`context.json` holds them for each reference and concept of the testbed; `python -m tools.context DIR` writes it from
the JSON reports of a folder. A model's figures depend on its reference, so the reference is identified by its digest:
other weights of the same name have no context. The figures are not findings of the audit that shows them, and not part
of its content.
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
    """The published method of its erasure; empty if there is none."""
    digest: str
    destruction: Estimate
    lost_pull: Estimate
    general_damage: Estimate

    @property
    def name(self) -> str:
        """The method's name, or else the last part of the model's name."""
        return self.method or self.model.rpartition("/")[2]


@dataclass(frozen=True)
class Context:
    """The models of one reference and concept, and the source of their figures."""

    source: str
    points: list[ContextPoint]


def context_of(content: ReportContent) -> Context | None:
    """Return the context of an audit without the audit's own models; None if its reference has no context."""
    digests = {model.name: model.digest for model in content.manifest.models}
    spec = content.spec
    for group in _groups():
        if (group["concept"], group["reference"]) == (content.concept.name, digests.get(spec.reference)):
            # The reference is at the origin by definition, so it has no figures.
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
