"""A report as one HTML file: no script, no external resource; pictures are data URIs and drawings inline SVG.

`page.html.j2` lays it out, `charts` draws; here is what the page says that the verdict does not say in words itself.
"""

import base64
import math
from collections.abc import Callable, Iterable
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from unerase.v1.audits_pb2 import Report, ReportPicture
from unerase.v1.types_pb2 import EvaluationClass, ModelRole
from unerase.v1.verdicts_pb2 import Conclusion, CurvePoint, Estimate, EvaluationResult, Outcome
from unerase_backend.report import charts
from unerase_backend.report.schema import canonical_json

_HEADLINES = {
    Conclusion.CONCLUSION_INCOMPLETE: "Incomplete",
    Conclusion.CONCLUSION_UNINFORMATIVE: "Uninformative",
    Conclusion.CONCLUSION_NOT_ERASED: "Not erased",
    Conclusion.CONCLUSION_AVOIDED: "Avoided: the concept is hidden, not gone",
    Conclusion.CONCLUSION_REMOVED: "Removed, up to the budget that was spent",
    Conclusion.CONCLUSION_INCONCLUSIVE: "Inconclusive",
}
_TONES = {
    Conclusion.CONCLUSION_NOT_ERASED: "bad",
    Conclusion.CONCLUSION_AVOIDED: "bad",
    Conclusion.CONCLUSION_REMOVED: "good",
}


def render_html(report: Report, read_picture: Callable[[str], bytes]) -> str:
    """Return the page; `read_picture` gives a picture's PNG for its digest."""
    environment = Environment(
        loader=PackageLoader("unerase_backend.report", "."),
        autoescape=select_autoescape(enabled_extensions=("j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = report.content
    verdict = content.verdict
    return environment.get_template("page.html.j2").render(
        report=report,
        content=content,
        verdict=verdict,
        headline=_HEADLINES.get(verdict.conclusion, "No verdict"),
        tone=_TONES.get(verdict.conclusion, "open"),
        curves=[(result, list(_curves(result))) for result in verdict.evaluations if result.curve],
        galleries=[
            (name, list(_cases(group))) for name, group in groupby(content.pictures, key=lambda each: each.evaluation)
        ],
        parameters={each.name: canonical_json(each.parameters) for each in content.evaluations},
        charts=charts,
        estimate=estimate,
        number=number,
        outcome=lambda value: _word(Outcome.Name(value), "OUTCOME_"),
        kind=lambda value: _word(EvaluationClass.Name(value), "EVALUATION_CLASS_"),
        role=role_name,
        data_uri=lambda digest: _data_uri(read_picture(digest)),
    )


def number(value: float) -> str:
    """Return a figure with two decimals and a true minus sign; "none" where it is not finite."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "none"


def estimate(figure: Estimate) -> str:
    """Return a figure with its interval."""
    return f"{number(figure.value)} ({number(figure.interval.lower)} to {number(figure.interval.upper)})"


def role_name(role: ModelRole.ValueType) -> str:
    """Return a role as a word."""
    return _word(ModelRole.Name(role), "MODEL_ROLE_")


def _word(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower().replace("_", " ")


def _curves(result: EvaluationResult) -> Iterable[tuple[str, Markup]]:
    by_arm: dict[str, list[CurvePoint]] = {}
    for point in result.curve:
        by_arm.setdefault(point.arm, []).append(point)
    for arm, points in by_arm.items():
        title = f"{result.title}{f', {arm}' if arm else ''}"
        yield title, charts.curve(title, points)


def _cases(pictures: Iterable[ReportPicture]) -> Iterable[tuple[int, str, bool, list[ReportPicture]]]:
    """Yield each case with its prompt and whether the subject shows the concept; the order of the report is kept."""
    for case, group in groupby(pictures, key=lambda each: each.case_index):
        shown = list(group)
        subject = next((each for each in shown if each.role == ModelRole.MODEL_ROLE_SUBJECT), shown[0])
        yield case, subject.prompt, subject.detected, shown


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
