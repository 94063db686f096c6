"""A report as one HTML file: no script, no external resource; pictures are data URIs and drawings inline SVG.

`page.html.j2` lays it out, `page.css` dresses it, `charts` draws; here is what the page says that the verdict does not
say in words itself.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from unerase.v1.audits_pb2 import Report, ReportContent, ReportPicture
from unerase.v1.types_pb2 import EvaluationClass, EvaluationRequest, ModelRole, Tensor
from unerase.v1.verdicts_pb2 import Conclusion, Estimate, EvaluationResult, Excess, Interval, Outcome, Rate
from unerase_backend.report import charts
from unerase_backend.report.schema import canonical_json

MAX_SIDE = 256
"""Larger pictures are shown reduced to this many pixels a side, so that the file stays small enough to mail."""


@dataclass(frozen=True)
class _Reading:
    """A conclusion as a heading, what it means, and its colour."""

    headline: str
    meaning: str
    tone: str


_READINGS = {
    Conclusion.CONCLUSION_INCOMPLETE: _Reading(
        "Incomplete", "A required evaluation is missing, or has more unscored cases than it can bear.", "none"
    ),
    Conclusion.CONCLUSION_UNINFORMATIVE: _Reading(
        "Uninformative", "The reference itself does not show the concept under its plain prompt.", "none"
    ),
    Conclusion.CONCLUSION_NOT_ERASED: _Reading("Not erased", "The plain prompt still makes the concept.", "bad"),
    Conclusion.CONCLUSION_AVOIDED: _Reading(
        "Avoided, not removed", "The prompt no longer leads to the concept, but the model still holds it.", "bad"
    ),
    Conclusion.CONCLUSION_REMOVED: _Reading(
        "Removed, up to the budget that was spent",
        "No evaluation brought the concept back, and the concept's pictures became less likely to the model.",
        "good",
    ),
    Conclusion.CONCLUSION_INCONCLUSIVE: _Reading(
        "Inconclusive", "Nothing brought the concept back for certain, and nothing shows that it is gone.", "open"
    ),
}
_NO_READING = _Reading("No verdict", "", "none")

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


def render_html(report: Report, read_picture: Callable[[str], bytes]) -> str:
    """Return the page; `read_picture` gives a picture's PNG for its digest, and its errors are raised."""
    environment = Environment(
        loader=PackageLoader("unerase_backend.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = report.content
    verdict = content.verdict
    reading = _READINGS.get(verdict.conclusion, _NO_READING)
    titles = {result.name: result.title or result.name for result in verdict.evaluations}
    spec = content.spec
    return environment.get_template("page.html.j2").render(
        report=report,
        content=content,
        verdict=verdict,
        headline=reading.headline,
        meaning=reading.meaning,
        tone=reading.tone,
        models=[
            (role, name)
            for role, name in (("subject", spec.subject), ("reference", spec.reference), ("control", spec.control))
            if name
        ],
        sections=_sections(content),
        curves=[drawn for result in verdict.evaluations for drawn in _curves(result)],
        galleries=[
            (titles.get(name, name), list(_cases(group)))
            for name, group in groupby(content.pictures, key=lambda picture: picture.evaluation)
        ],
        titles=titles,
        charts=charts,
        rates=_rates,
        estimate=estimate,
        number=number,
        points=points,
        span=span,
        p_value=p_value,
        has_doubt=_has_doubt,
        learned=_learned,
        parameters=_parameters,
        outcome=lambda value: _word(Outcome.Name(value), "OUTCOME_"),
        outcome_tone=lambda value: _TONE_OF_OUTCOME.get(value, "none"),
        kind=lambda value: _word(EvaluationClass.Name(value), "EVALUATION_CLASS_"),
        role=lambda value: _word(ModelRole.Name(value), "MODEL_ROLE_"),
        data_uri=lambda digest: data_uri(read_picture(digest)),
    )


def number(value: float) -> str:
    """Return a figure with two decimals and a true minus sign; "none" where it is not finite."""
    return _signed(f"{value:.2f}") if math.isfinite(value) else "none"


def points(value: float) -> str:
    """Return a difference of two rates in percentage points, as in "+71"; "none" where it is not finite."""
    return f"+{_percent(value)}" if value >= 0.005 else _percent(value)


def span(interval: Interval) -> str:
    """Return the ends of an interval of rates in per cent, as in "21 to 57"."""
    return f"{_percent(interval.lower)} to {_percent(interval.upper)}"


def p_value(p: float) -> str:
    """Return a p-value with two digits and its sign, as in "= 0.012"; the smallest as a bound."""
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def estimate(figure: Estimate) -> str:
    """Return a figure with its interval."""
    return f"{number(figure.value)} ({number(figure.interval.lower)} to {number(figure.interval.upper)})"


def data_uri(picture: bytes) -> str:
    """Return the picture as a data URI, reduced if it is large."""
    kind = "png"
    with Image.open(io.BytesIO(picture)) as image:
        if max(image.size) > MAX_SIDE:
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            reduced = io.BytesIO()
            image.convert("RGB").save(reduced, "JPEG", quality=88)
            kind, picture = "jpeg", reduced.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _percent(value: float) -> str:
    return _signed(f"{100 * value:.0f}") if math.isfinite(value) else "none"


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}" if text.strip("-0.") else "")


def _word(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower().replace("_", " ")


def _sections(content: ReportContent) -> list[tuple[str, str]]:
    verdict = content.verdict
    likelihood = verdict.HasField("likelihood")
    sections = [
        ("evidence", "Evidence", True),
        ("evaluations", "Evaluations", True),
        ("budget", "Budget", any(result.curve for result in verdict.evaluations)),
        ("pictures", "Pictures", bool(content.pictures)),
        ("plane", "Destruction", likelihood),
        ("side", "Side effects", likelihood or verdict.HasField("interference")),
        ("judges", "Judges", True),
        ("power", "Power", True),
        ("findings", "Findings", bool(content.findings)),
        ("reading", "How to read", True),
        ("manifest", "Manifest", True),
    ]
    return [(anchor, title) for anchor, title, there in sections if there]


def _rates(result: EvaluationResult) -> list[tuple[str, Rate]]:
    rates = [("subject", result.subject), ("reference", result.reference)]
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


def _curves(result: EvaluationResult) -> Iterator[tuple[str, Markup]]:
    for arm, of_arm in groupby(result.curve, key=lambda point: point.arm):
        title = f"{result.title or result.name}{f', {arm}' if arm else ''}"
        yield title, charts.curve(title, list(of_arm))


def _cases(pictures: Iterable[ReportPicture]) -> Iterator[_ShownCase]:
    """Yield each case, in order of the report."""
    for case, group in groupby(pictures, key=lambda picture: picture.case_index):
        shown = list(group)
        subject = next((each for each in shown if each.role == ModelRole.MODEL_ROLE_SUBJECT), shown[0])
        yield _ShownCase(case, subject.prompt, subject.detected, shown)
