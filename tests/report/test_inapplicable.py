"""What does not apply to the models stands on the page with its reason, neither as a failure nor as left out."""

import re

import pytest

from support.report_by_hand import CONTROL, DESCRIPTIONS, made, observed, page
from unerase.v1.audits_pb2 import Manifest, Report, Tolerances
from unerase.v1.models_pb2 import Guard, Model
from unerase.v1.types_pb2 import ModelAccess
from unerase.v1.verdicts_pb2 import Outcome, Verdict
from unerase_backend import report
from unerase_backend.report.offline import conclude_exported
from unerase_backend.report.parquet import read_parquet

REASON = "predictions without guidance are needed"
COMPLETION = "diffusion-completion"


@pytest.fixture(scope="module")
def lacking() -> Report:
    """A report in which an evaluation and the likelihood, a measure, do not apply."""
    return made(observed(), inapplicable={COMPLETION: REASON, "likelihood": REASON})


def words(made_report: Report) -> str:
    return re.sub(r"\s+", " ", page(made_report).text)


def test_the_content_has_it_in_the_battery_and_in_the_verdict(lacking: Report) -> None:
    content = lacking.content
    reasons = {one.name: one.not_applicable.reason for one in content.evaluations if one.HasField("not_applicable")}
    assert reasons == {COMPLETION: REASON, "likelihood": REASON}
    assert [one.name for one in content.verdict.not_applicable] == ["likelihood", COMPLETION]
    assert {one.name for one in content.descriptions} >= reasons.keys()


def test_the_first_page_says_what_does_not_apply_and_why(lacking: Report) -> None:
    text = words(lacking)
    assert f"Not applicable to these models: likelihood and {COMPLETION}. The reason: {REASON}." in text
    assert f"{COMPLETION} does not apply: {REASON}." in text
    assert f"Likelihood does not apply: {REASON}." in text
    assert "Not applicable to these models" not in words(made(observed()))


def test_each_has_a_row_without_figures(lacking: Report) -> None:
    text = words(lacking)
    rows = text[text.index("Excess over the control, percentage points") : text.index("Single draws, by arm")]
    assert re.search(rf"{COMPLETION}unspecified ?not applicable ?is not applicable: {REASON} not run no test", rows), (
        rows
    )
    assert re.search(rf"Likelihood ?measure ?not applicable ?is not applicable: {REASON} not run no test", rows), rows
    assert "0 of 0" not in rows
    assert "budget 0" not in rows


def test_it_is_not_listed_as_left_out_nor_as_run(lacking: Report) -> None:
    lacking.content.verdict.incomplete_waived = False
    text = words(lacking)
    missing = re.search(r"Missing, or with too many unscored cases: ([^.]*)\.", text)
    assert missing is None or not {COMPLETION, "likelihood"} & set(missing[1].split(", "))
    assert "and of these not the ones that are not applicable" in text
    assert "and of these not the ones" not in words(made(observed()))
    agreement = text[text.index("Judge and second judge agree") :]
    assert COMPLETION not in agreement[: agreement.index("Pictures of the concept")]


def test_what_was_compared_with_a_model_is_counted_without_it() -> None:
    text = words(made(observed(), inapplicable={COMPLETION: REASON}))
    assert "What a model that never learned the concept would show" not in text
    uncontrolled = [one for one in observed() if one.role != CONTROL or one.evaluation != "noise-based"]
    assert "Only 1 of 2 evaluations was compared with one" in words(
        made(uncontrolled, inapplicable={COMPLETION: REASON})
    )


def test_a_guarded_model_s_page_has_it_on_both_sides() -> None:
    manifest = Manifest(models=[Model(name="s", guards=[Guard(kind="prompt-filter")]), Model(name="r")])
    made_report = made(
        observed(), manifest=manifest, inapplicable={COMPLETION: REASON}, access=ModelAccess.MODEL_ACCESS_BOTH
    )
    deployed = made_report.content.verdict.deployed
    assert [one.name for one in deployed.not_applicable] == [COMPLETION]
    text = words(made_report)
    side = text[text.index("With and without its guards") : text.index("What this does not say")]
    assert re.search(rf"{COMPLETION} not applicable not applicable", side), side


def test_the_verdict_of_an_export_is_the_same() -> None:
    content = made(observed(), inapplicable={COMPLETION: REASON, "likelihood": REASON}).content
    content.spec.battery.evaluations.extend(content.evaluations)
    content.manifest.models.append(Model(name="c", digest="ab" * 32, never_learned=[content.spec.concept]))
    audit = read_parquet(report.render_parquet("a1", content, DESCRIPTIONS, observed()))
    again = conclude_exported(audit, Tolerances()).verdict
    assert {one.name: one.why.reason for one in again.not_applicable} == {COMPLETION: REASON, "likelihood": REASON}
    assert outcome(again, COMPLETION) == Outcome.OUTCOME_NOT_APPLICABLE
    assert (again.conclusion, again.summary) == (content.verdict.conclusion, content.verdict.summary)


def outcome(verdict: Verdict, name: str) -> int:
    return next(one.outcome for one in verdict.evaluations if one.name == name)
