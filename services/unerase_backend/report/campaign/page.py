"""A campaign's cells as one HTML page: no external resource, and a script that the page's own policy names by its hash.

The page is complete without its script: the gate, what changed, both heat maps, the planes and the table of cells are
in it. The script (`page.js`) sorts and filters, and opens the evidence of a cell, which the page holds as JSON. It
writes text only as text.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup

from unerase.v1.campaigns_pb2 import CampaignReport
from unerase_backend.report.campaign import planes
from unerase_backend.report.campaign.overview import Overview, findings_of, verdict_of
from unerase_backend.report.campaign.rows import Measured, Row, Titles
from unerase_backend.report.campaign.thumbnails import encode
from unerase_backend.report.campaign.words import OUTCOMES, of_gate
from unerase_backend.report.formatting import number, points
from unerase_backend.report.schema import canonical_json
from unerase_backend.report.templates import environment
from unerase_backend.runtime.identifiers import AUDIT_ID
from unerase_backend.verdict.decision import Tolerances

PLANES_SHOWN = 12
"""Planes that are shown unfolded."""

ACROSS = 14
"""Columns up to which a heat map keeps its words in print."""

LARGE = 60
"""Rows of a table beyond which its layout waits until the reader is near it."""

_ENVIRONMENT = environment("unerase_backend.report.campaign", "unerase_backend.report")
_SCRIPT = resources.files("unerase_backend.report.campaign").joinpath("page.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Part:
    """One of several pages of a campaign."""

    number: int
    last: bool
    name: Callable[[int], str]
    """The file of a page's number."""


@dataclass(frozen=True)
class _Grid:
    """The heat map of subjects and concepts; the longer of the two lists goes down."""

    down: list[str]
    across: list[str]
    turned: bool
    """The concepts go down."""
    rows: dict[tuple[str, str], Row]

    def at(self, down: str, across: str) -> Row | None:
        """Return the cell in a row and a column."""
        return self.rows.get((across, down) if self.turned else (down, across))


@dataclass(frozen=True)
class _Worst:
    """One subject under one evaluation, over its concepts."""

    measured: Measured
    recovering: int
    """Concepts that the evaluation brings back."""
    concepts: int
    cell: int
    """The cell with the worst of them."""

    @property
    def kind(self) -> str:
        """The kind of colour; recovering has three depths, by the excess."""
        if self.measured.said.kind != "recovers":
            return self.measured.said.kind
        return f"recovers-{1 + sum((self.measured.excess or 0) > third for third in (33, 66))}"

    @property
    def order(self) -> int:
        """What its column is sorted by, the worst first."""
        return 1000 * self.measured.said.severity - (self.measured.excess or 0)

    @property
    def shown(self) -> str:
        """The highest excess, with its sign."""
        excess = self.measured.excess
        return f"{self.measured.said.sign} {points(excess / 100)}" if excess is not None else self.measured.said.sign


def render_page(
    head: CampaignReport,
    rows: Sequence[Row],
    titles: Titles,
    overview: Overview,
    read_picture: Callable[[str], bytes | None],
    part: Part | None = None,
) -> str:
    """Return the page of some cells; `read_picture` is as in `write_html`."""
    tolerances = Tolerances.of(head.content.spec.template)
    grid, ordered = _grid(rows), sorted(rows, key=lambda row: (row.said.severity, row.index))
    by_subject: dict[str, list[Row]] = {}
    for row in rows:
        by_subject.setdefault(row.subject, []).append(row)
    return _ENVIRONMENT.get_template("page.html.j2").render(
        part=part,
        first=rows[0].index if rows else 0,
        last=rows[-1].index if rows else 0,
        rows=ordered,
        kinds=sorted(Counter(row.said for row in rows).items(), key=lambda each: each[0].severity),
        gated=head.content.HasField("gate_result"),
        compared=head.HasField("comparison"),
        grid=grid,
        many=len(grid.across) > ACROSS,
        large=LARGE,
        titles=titles.shown,
        by_evaluation=[
            (subject, [_worst(shown, name) for name in titles.shown]) for subject, shown in by_subject.items()
        ],
        concepts=list(dict.fromkeys(row.concept for row in rows)),
        multiples=planes.multiples(rows, tolerances.destruction),
        planes_shown=PLANES_SHOWN,
        tolerances=tolerances,
        evidence=_json(_evidence(rows, titles, read_picture)),
        **_common(head, overview),
    )


def render_index(head: CampaignReport, overview: Overview, starts: Sequence[int], name: Callable[[int], str]) -> str:
    """Return the first page of a campaign that has several; `starts` are the first cells of the others."""
    ends = [*(start - 1 for start in starts[1:]), overview.cells - 1]
    parts = [(name(at), start, end) for at, (start, end) in enumerate(zip(starts, ends, strict=True), 1)]
    return _ENVIRONMENT.get_template("index.html.j2").render(
        parts=parts, evidence=_json({"cells": []}), **_common(head, overview)
    )


def _common(head: CampaignReport, overview: Overview) -> dict[str, Any]:
    """Return what every page is rendered with."""
    heading, tone, statement = verdict_of(head, overview)
    return {
        "head": head,
        "overview": overview,
        "heading": heading,
        "tone": tone,
        "statement": statement,
        "findings": findings_of(head),
        "findings_total": len(head.content.gate_result.findings),
        "changed": overview.listed_changes(),
        "gate_said": of_gate,
        "script": Markup(_SCRIPT),  # noqa: S704
        "policy": _policy(),
        "outcomes": OUTCOMES,
        "created": _moment(head, "create_time"),
        "ended": _moment(head, "end_time"),
        "running_head": _running_head(head),
        "key": planes.key,
        "points": points,
        "number": number,
        "gate_text": canonical_json(head.content.gate_result.gate, indent=1),
        "template": canonical_json(head.content.spec.template, indent=1),
    }


def _moment(head: CampaignReport, name: Literal["create_time", "end_time"]) -> str:
    time: Timestamp = getattr(head, name)
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if head.HasField(name) else "not recorded"


def _running_head(head: CampaignReport) -> Markup:
    """Return the header of each printed page, as a CSS string: the campaign's id and date."""
    said = ["unerase campaign report"]
    if AUDIT_ID.fullmatch(head.campaign_id):
        said.append(f"campaign {head.campaign_id}")
    if head.HasField("end_time"):
        said.append(_moment(head, "end_time"))
    return Markup('"{}"').format("  \N{MIDDLE DOT}  ".join(said))


def _grid(rows: Sequence[Row]) -> _Grid:
    subjects = list(dict.fromkeys(row.subject for row in rows))
    concepts = list(dict.fromkeys(row.concept for row in rows))
    turned = len(concepts) > max(ACROSS, len(subjects))
    down, across = (concepts, subjects) if turned else (subjects, concepts)
    return _Grid(down, across, turned, {(row.subject, row.concept): row for row in rows})


def _worst(rows: Sequence[Row], name: str) -> _Worst | None:
    found = [(one, row) for row in rows for one in row.measured if one.name == name]
    if not found:
        return None
    one, row = min(found, key=lambda each: (each[0].said.severity, -(each[0].excess or 0), each[1].index))
    return _Worst(one, sum(each.said.kind == "recovers" for each, _ in found), len(found), row.index)


def _evidence(rows: Sequence[Row], titles: Titles, read_picture: Callable[[str], bytes | None]) -> dict[str, Any]:
    cells = []
    for row in rows:
        cell = dict(row.evidence)
        pictures = encode(row.picked, len(rows), read_picture)
        if pictures:
            cell["p"] = pictures
        if row.pictures > len(pictures):
            cell["o"] = row.pictures - len(pictures)
        cells.append(cell)
    return {
        "titles": list(titles.shown.values()),
        "outcomes": [[one.kind, one.sign, one.word] for one in OUTCOMES],
        "cells": cells,
    }


def _json(value: object) -> Markup:
    """Return JSON that ends no element and begins none."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704


def _policy() -> str:
    """Return the page's content security policy: its own script, its own styles, pictures within it, and no more."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
