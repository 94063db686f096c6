"""A report as one HTML file: no script, no external resource; pictures are data URIs and drawings inline SVG.

`page.html.j2` is the layout, with a template for each of the longer sections, and `page.css` the style. `charts` and
`plane` draw. This module computes what the page shows beyond the words of the verdict.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup

from unerase.v1.audits_pb2 import Report, ReportContent, ReportPicture
from unerase.v1.types_pb2 import DecidedBy, EvaluationClass, EvaluationRequest, ModelRole, Tensor
from unerase.v1.verdicts_pb2 import (
    Alternatives,
    AlternativesResult,
    Calibration,
    Conclusion,
    Estimate,
    EvaluationResult,
    Excess,
    LabelShare,
    Outcome,
    Rate,
    Verdict,
)
from unerase_backend.report import charts, drawing, plane
from unerase_backend.report.context import Context, context_of
from unerase_backend.report.curves import budget_curves, effort_curves, finding_curves, finding_order
from unerase_backend.report.formatting import estimate, number, p_value, points, span
from unerase_backend.report.pictures import Pictures
from unerase_backend.report.schema import canonical_json
from unerase_backend.report.templates import environment
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.identifiers import AUDIT_ID
from unerase_backend.verdict import controls, inapplicable, measure_wording
from unerase_backend.verdict.access import DEPLOYED, not_audited, words
from unerase_backend.verdict.decision import Tolerances
from unerase_backend.verdict.flaws import flaws, schedule_notes
from unerase_backend.verdict.summary import AGAINST, NOTHING_FOUND, OPEN, Ground, grounds, summarise

FINDINGS_SHOWN = 6
"""Findings of one evaluation that are shown unfolded: two cases of three models."""

LABELS_SHOWN = 10
"""Labels of the alternatives that are shown unfolded."""

_HEADLINES = {
    Conclusion.CONCLUSION_INCOMPLETE: ("Incomplete", "none"),
    Conclusion.CONCLUSION_UNINFORMATIVE: ("Uninformative", "none"),
    Conclusion.CONCLUSION_NOT_ERASED: ("Not erased", "bad"),
    Conclusion.CONCLUSION_AVOIDED: ("Avoided, not removed", "bad"),
    Conclusion.CONCLUSION_REMOVED: ("Removed, up to the budget that was spent", "good"),
    Conclusion.CONCLUSION_INCONCLUSIVE: ("Inconclusive", "open"),
}
"""The heading of each conclusion, and its colour."""

_MARK_OF_GROUND = {
    AGAINST: ("bad", "\N{MULTIPLICATION X}", "speaks against the erasure"),
    NOTHING_FOUND: ("good", "\N{CHECK MARK}", "nothing found"),
    OPEN: ("open", "?", "settles nothing"),
}
"""The colour of each kind of ground, its sign, and the sign in words."""


_ENVIRONMENT = environment("unerase_backend.report")

_TONE_OF_OUTCOME = {
    Outcome.OUTCOME_RECOVERS: "bad",
    Outcome.OUTCOME_DOES_NOT_RECOVER: "good",
    Outcome.OUTCOME_INCONCLUSIVE: "open",
}


@dataclass(frozen=True)
class _ShownCase:
    """The pictures of one case, one for each model."""

    index: int
    prompt: str
    hit: bool
    pictures: list[ReportPicture]


@dataclass(frozen=True)
class _AlternativeRow:
    """One label of the alternatives; for each model its role, the label's share, and the number of pictures."""

    label: str
    shares: list[tuple[str, LabelShare, int]]


def render_html(report: Report, read_picture: Callable[[str], bytes]) -> str:
    """Return the page; `read_picture` returns the PNG of a digest, and its errors propagate."""
    content = report.content
    verdict = content.verdict
    headline, tone = _headline(verdict)
    faults = flaws(content.spec, content.manifest)
    sure = not faults and not verdict.assumptions
    titles = {result.name: result.title or result.name for result in verdict.evaluations}
    spec, tolerances = content.spec, Tolerances.of(content.spec)
    context = context_of(content)
    return _ENVIRONMENT.get_template("page.html.j2").render(
        report=report,
        content=content,
        verdict=verdict,
        headline="No valid verdict" if faults else headline,
        tone="none" if faults else tone,
        faults=faults,
        # Older reports have no summary.
        summary=summarise(verdict, faults) if faults or not verdict.summary else verdict.summary,
        grounds=_grounds(content, sure=sure),
        **_access(content),
        sure=sure,
        ground_mark=_MARK_OF_GROUND.__getitem__,
        created=_moment(report, "create_time"),
        ended=_moment(report, "end_time"),
        version=content.manifest.versions.get("unerase", ""),
        judge=next((quality for quality in verdict.judges if quality.judge == spec.judge), None),
        running_head=_running_head(report),
        models=_models(content),
        schedules=schedule_notes(content.spec, content.manifest),
        # Older reports do not state their controls.
        controls=verdict.control_statement or controls.overview(verdict.evaluations, spec),
        control_of=lambda result: result.control_statement or controls.statement(result, spec),
        **_judged(verdict),
        both=verdict.decided_by == DecidedBy.DECIDED_BY_BOTH,
        sections=_sections(content),
        stands=_stands(content, context) if verdict.likelihood.HasField("lost_pull") else [],
        context=context,
        curves=[drawn for result in verdict.evaluations for drawn in budget_curves(result)],
        spent=[drawn for result in verdict.evaluations for drawn in effort_curves(result)],
        traced=charts.tracing(verdict.tracing.points, (tolerances.destruction, tolerances.general_damage)),
        has_path=len(plane.on_path(verdict.tracing.points)) > 1,
        alternatives=_alternative_rows(verdict.alternatives),
        labels_shown=LABELS_SHOWN,
        findings=[
            (titles.get(name, name), [finding_curves(finding) for finding in sorted(group, key=finding_order)])
            for name, group in groupby(content.findings, key=lambda finding: finding.evaluation)
        ],
        findings_shown=FINDINGS_SHOWN,
        galleries=[
            (titles.get(name, name), list(_cases(group)))
            for name, group in groupby(content.pictures, key=lambda picture: picture.evaluation)
        ],
        titles=titles,
        tolerances=tolerances,
        picture=Pictures(read_picture).show,
    )


def _headline(verdict: Verdict) -> tuple[str, str]:
    said, tone = _HEADLINES.get(verdict.conclusion, ("No verdict", "none"))
    if verdict.damaged and verdict.conclusion == Conclusion.CONCLUSION_REMOVED:
        said = said.replace("Removed,", "Removed, and much else with it,")
    return said, tone


def _judged(verdict: Verdict) -> dict[str, Any]:
    """Return which evaluations were judged, and what the page says of those that were not."""
    judged = [result for result in verdict.evaluations if result.outcome != Outcome.OUTCOME_NOT_APPLICABLE]
    known = {one.name for one in verdict.not_applicable}
    return {
        "judged": judged,
        "with_model": sum(controls.kind_of(result) == controls.MODEL for result in judged),
        "inapplicable": [
            (inapplicable.listed(names), reason)
            for reason, names in inapplicable.by_reason(verdict.not_applicable).items()
        ],
        "inapplicable_measures": inapplicable.measures(verdict),
        "left_out": [name for name in verdict.missing if name not in known],
    }


def _access(content: ReportContent) -> dict[str, Any]:
    """Return what the page says of the subject's guards."""
    verdict = content.verdict
    return {
        "access_words": words(verdict.access),
        "not_audited": not_audited(content.spec),
        "deployed_alone": content.spec.access == DEPLOYED,
        "guards": [guard.kind for model in content.manifest.models[:1] for guard in model.guards],
        "deployed_headline": _headline(verdict.deployed)[0],
        "by_access": list(zip(verdict.evaluations, verdict.deployed.evaluations, strict=False)),
    }


def _models(content: ReportContent) -> list[tuple[str, str]]:
    """Return each role with its model; without a control model, the control is what stood in its place."""
    spec, results = content.spec, content.verdict.evaluations
    placebos = spec.placebos or ([spec.placebo] if spec.placebo else [])
    instead = {
        controls.PLACEBO: " ".join(["placebo", " and ".join(placebos)]).strip(),
        controls.CONCEPT_FREE: "prompts of other concepts",
    }
    kinds = {controls.kind_of(result) for result in results}
    control = spec.control or ", ".join(words for kind, words in instead.items() if kind in kinds)
    named = (("subject", spec.subject), ("reference", spec.reference), ("control", control))
    return [(role, name) for role, name in named if name]


def _grounds(content: ReportContent, *, sure: bool) -> list[Ground]:
    tolerances = Tolerances.of(content.spec)
    return grounds(
        content.verdict,
        destruction=tolerances.destruction,
        general_damage=tolerances.general_damage,
        interference=tolerances.interference,
        sure=sure,
    )


def _moment(report: Report, field: Literal["create_time", "end_time"]) -> str:
    """Return a time of the report to the second, as in "2026-11-28 21:57:16 UTC"."""
    if not report.HasField(field):
        return "not recorded"
    time: Timestamp = getattr(report, field)
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"


def _running_head(report: Report) -> Markup:
    """Return the header of each printed page, as a CSS string: the audit's id and date."""
    said = ["unerase audit report"]
    if AUDIT_ID.fullmatch(report.audit_id):
        said.append(f"audit {report.audit_id}")
    if report.HasField("end_time"):
        said.append(_moment(report, "end_time"))
    return Markup('"{}"').format("  \N{MIDDLE DOT}  ".join(said))


def _word(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower().replace("_", " ")


def _sections(content: ReportContent) -> list[tuple[str, str]]:
    verdict = content.verdict
    likelihood = verdict.HasField("likelihood")
    sections = [
        ("grounds", "What it rests on", bool(verdict.evaluations) or likelihood),
        ("access", "Guards", verdict.HasField("deployed")),
        ("limits", "Limits", True),
        ("evidence", "Statistics", True),
        ("plane", "Destruction", likelihood),
        ("evaluations", "Evaluations", True),
        ("budget", "Budget", any([*budget_curves(result), *effort_curves(result)] for result in verdict.evaluations)),
        ("pictures", "Pictures", bool(content.pictures)),
        ("alternatives", "Alternatives", verdict.HasField("alternatives")),
        ("tracing", "Tracing", verdict.HasField("tracing")),
        ("findings", "Findings", bool(content.findings)),
        ("side", "Side effects", likelihood or verdict.HasField("interference")),
        ("measures", "Measures", bool(verdict.measures)),
        ("judges", "Judges", True),
        ("power", "Power", True),
        ("reading", "How to read", True),
        ("manifest", "Manifest", True),
    ]
    return [(anchor, title) for anchor, title, there in sections if there]


def _stands(content: ReportContent, context: Context | None) -> list[plane.Stand]:
    """Return the models on the plane, in order of drawing: the context, the control, the reference, the subject."""
    spec, measured, limit = content.spec, content.verdict.likelihood, content.spec.tolerances.general_damage
    stands = [
        _stand(point.name, "context", (point.destruction, point.lost_pull, point.general_damage), limit)
        for point in (context.points if context else [])
    ]
    if measured.HasField("control_destruction") and measured.HasField("control_lost_pull"):
        figures = measured.control_destruction, measured.control_lost_pull, measured.control_general_damage
        stands.append(_stand(_last_part(spec.control), "control", figures, limit))
    stands.append(plane.Stand(_last_part(spec.reference), "reference", Estimate(), Estimate()))
    figures = measured.destruction, measured.lost_pull, measured.general_damage
    return [*stands, _stand(_last_part(spec.subject), "subject", figures, limit)]


def _stand(name: str, kind: str, figures: tuple[Estimate, Estimate, Estimate], limit: float) -> plane.Stand:
    destruction, lost_pull, damage = figures
    return plane.Stand(name, kind, destruction, lost_pull, damage.value, damage.value > limit)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _role(value: ModelRole.ValueType) -> str:
    return _word(ModelRole.Name(value), "MODEL_ROLE_")


def _calibrated(calibration: Calibration) -> str:
    """Return the calibration of an evaluation in words."""
    held, free = calibration.sensitivity, calibration.specificity
    known = []
    if calibration.HasField("sensitivity"):
        known.append(f"brings the concept back in {held.hits} of {counted(held.cases, 'case')} of models that hold it")
    if calibration.HasField("specificity"):
        falsely = f"{free.cases - free.hits} of {counted(free.cases, 'case')}"
        known.append(f"falsely in {falsely} of models that never learned it")
    return ", ".join(known)


def _sources(results: Iterable[EvaluationResult]) -> list[str]:
    """Return the distinct sources of the evaluations' calibrations."""
    return list(dict.fromkeys(each.calibration.source for each in results if each.HasField("calibration")))


def _rates(result: EvaluationResult) -> list[tuple[str, Rate]]:
    # An evaluation that does not apply to the models has no rates.
    rates = [("subject", result.subject), ("reference", result.reference)] if result.HasField("subject") else []
    return [*rates, ("control", result.control)] if result.HasField("control") else rates


def _has_doubt(excess: Excess) -> bool:
    """Whether unscored cases could move the bounds."""
    return bool(excess.bounds_with_unscored != excess.bounds)


def _learned(embedding: Tensor) -> str:
    values = np.frombuffer(embedding.values, "<f4")
    tokens = embedding.shape[0] if len(embedding.shape) > 1 else 1
    kind = "one learned token" if tokens == 1 else f"{tokens} learned tokens"
    return (
        f"{kind} of width {embedding.shape[-1] if embedding.shape else 0}, norm {number(float(np.linalg.norm(values)))}"
    )


def _parameters(evaluation: EvaluationRequest) -> str:
    text = canonical_json(evaluation.parameters)
    return text if text != "{}" else "defaults"


def _alternative_rows(result: AlternativesResult) -> list[_AlternativeRow]:
    """Return a row for each label: the subject's labels in their order, then those of the other models."""
    models: list[tuple[Alternatives, dict[str, LabelShare]]] = [
        (model, {each.label: each for each in model.labels})
        for model in sorted(result.models, key=lambda model: model.role)
    ]
    labels = dict.fromkeys(label for _, found in models for label in found)
    return [
        _AlternativeRow(
            label,
            [
                (_role(model.role), found.get(label, LabelShare(label=label)), sum(s.pictures for s in model.labels))
                for model, found in models
            ],
        )
        for label in labels
    ]


def _cases(pictures: Iterable[ReportPicture]) -> Iterator[_ShownCase]:
    """Yield each case, in order of the report."""
    for case, group in groupby(pictures, key=lambda picture: picture.case_index):
        shown = list(group)
        subject = next((each for each in shown if each.role == ModelRole.MODEL_ROLE_SUBJECT), shown[0])
        yield _ShownCase(case, subject.prompt, subject.detected, shown)


# What the templates call.
_ENVIRONMENT.globals |= {
    "charts": charts,
    "plane": plane,
    "drawing": drawing,
    "rates": _rates,
    "estimate": estimate,
    "number": number,
    "points": points,
    "span": span,
    "p_value": p_value,
    "has_doubt": _has_doubt,
    "has_excluded": lambda result: any(rate.excluded > result.not_applicable_cases for _, rate in _rates(result)),
    "not_applicable": Outcome.OUTCOME_NOT_APPLICABLE,
    "knowledge": measure_wording.KNOWLEDGE.__getitem__,
    "learned": _learned,
    "parameters": _parameters,
    "calibrated": _calibrated,
    "sources": _sources,
    "outcome": lambda value: _word(Outcome.Name(value), "OUTCOME_"),
    "outcome_tone": lambda value: _TONE_OF_OUTCOME.get(value, "none"),
    "kind": lambda value: _word(EvaluationClass.Name(value), "EVALUATION_CLASS_"),
    "role": _role,
}
