"""What the page shows of tracing, alternatives, findings and calibration: the messages' figures, and nothing else."""

import math
import random
import re

import pytest

from support.report_by_hand import (
    CONTROL,
    HOSTILE,
    PICTURES,
    REFERENCE,
    STANDING,
    SUBJECT,
    Page,
    found,
    made,
    observed,
    page,
    png,
    rate,
    standing,
    traced,
    whole,
)
from unerase.v1.audits_pb2 import Report
from unerase.v1.types_pb2 import ControlKind, DecidedBy, Finding
from unerase.v1.verdicts_pb2 import ArmResult, Excess, Interval, Knowledge, LabelShare
from unerase_backend import report
from unerase_backend.report import charts
from unerase_backend.report.formatting import estimate
from unerase_backend.report.html import FINDINGS_SHOWN, LABELS_SHOWN
from unerase_backend.report.pictures import Pictures

ROLES = {SUBJECT: "subject", REFERENCE: "reference", CONTROL: "control"}


def html(made_report: Report) -> str:
    return report.render_html(made_report, PICTURES.__getitem__)


def section(text: str, anchor: str) -> str:
    """The text of one section, its tags taken out."""
    start = text.index(f'<section aria-labelledby="{anchor}">')
    part = text[start : text.index("</section>", start)]
    return re.sub(r"\s+", " ", Page(part).text)


def anchors(made_report: Report) -> list[str]:
    return [link["href"].removeprefix("#") for link in page(made_report).of("a")]


def test_the_whole_page_is_well_formed_and_safe() -> None:
    text = html(whole())
    shown = Page(text)
    assert shown.open == []
    assert not shown.of("script", "link", "iframe", "object", "embed")
    for tag, attributes in shown.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href"}:
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name)
    assert "<script" not in text
    identifiers = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {link["href"] for link in shown.of("a", "use")} <= {f"#{each}" for each in identifiers}
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in shown.of("svg"))
    assert not re.search(r"[^a-z]nan[^a-z]", re.sub(r"base64,[^\"]*", "", text).lower())


def test_sections_stand_in_the_order_of_what_weighs() -> None:
    order = (
        "grounds limits evidence plane evaluations budget pictures alternatives tracing findings side measures judges "
        "power reading manifest"
    )
    assert anchors(whole()) == order.split()
    headings = [attributes["id"] for attributes in page(whole()).of("h2")]
    assert headings == order.split()


@pytest.mark.parametrize("absent", ["alternatives", "tracing", "findings", "measures"])
def test_nothing_is_shown_of_what_is_absent(absent: str) -> None:
    made_report = whole()
    if absent == "findings":
        del made_report.content.findings[:]
    else:
        made_report.content.verdict.ClearField(absent)
    assert absent not in anchors(made_report)
    assert f'id="{absent}"' not in html(made_report)


def test_each_strength_shows_what_stands_there() -> None:
    text = section(html(whole()), "tracing")
    for point in traced().points:
        labels = "".join(f"{label.label} {label.pictures}" for label in point.labels)
        assert f"{charts.share(point.strength)}{labels}" in text
        assert f"{point.detected.hits} of {point.detected.cases} at {charts.share(point.strength)}" in text
        assert f"{point.destruction.value:.2f} at {charts.share(point.strength)}" in text
        assert f"{point.general_damage.value:.2f} at {charts.share(point.strength)}" in text
        assert f"{point.lost_pull.value:.2f} at {charts.share(point.strength)}" in text
        assert f"{point.similarity:.2f} at {charts.share(point.strength)}" in text
    assert "Path on the plane over the strength" in text


def test_without_pull_the_path_is_not_drawn() -> None:
    made_report = whole()
    made_report.content.verdict.tracing.CopyFrom(traced(pull=False))
    text = section(html(made_report), "tracing")
    assert "Path on the plane" not in text
    assert "Lost pull" not in text
    assert "Destruction" in text


def test_a_point_without_labels_or_measures_can_be_shown() -> None:
    made_report = whole()
    for point in made_report.content.verdict.tracing.points:
        del point.labels[:]
        for name in ("destruction", "general_damage", "lost_pull", "detected"):
            point.ClearField(name)
    text = section(html(made_report), "tracing")
    assert "no label" in text
    assert "Destruction" not in text


def test_the_alternatives_are_a_distribution() -> None:
    text = html(whole())
    shown = section(text, "alternatives")
    for model in standing().models:
        assert estimate(model.entropy) in shown
        assert estimate(model.dispersion) in shown
        who = ROLES[model.role]
        for label in model.labels:
            assert f"{who}: {label.label}, {label.pictures} of 24" in shown
            assert f"{who}, labelled {label.label}" in shown
        assert (
            ", ".join(f"{near.concept}\N{NO-BREAK SPACE}{near.similarity:.2f}" for near in model.neighbours)
            in Page(text).text
        )
    assert "subject: hourglass, 1 of 24" in shown
    assert "control: hourglass, 0 of 24" in shown
    assert "control, labelled hourglass" not in shown
    assert "2 unscored" in shown


def test_bars_are_as_long_as_their_shares() -> None:
    """Of 160 units, in order of the subject's labels and, for each, of the models."""
    drawn = [attributes for attributes in page(whole()).of("rect") if attributes.get("class", "").startswith("bar")]
    counts = {role: dict(labels) for role, labels in STANDING.items()}
    expected = [
        (f"bar {ROLES[role]}", 160 * counts[role].get(label, 0) / 24)
        for label in dict(STANDING[SUBJECT])
        for role in STANDING
    ]
    assert [attributes["class"] for attributes in drawn] == [name for name, _ in expected]
    assert [float(attributes["width"]) for attributes in drawn] == pytest.approx(
        [each for _, each in expected], abs=0.05
    )


def test_rare_labels_are_folded() -> None:
    made_report = whole()
    subject = made_report.content.verdict.alternatives.models[0]
    del subject.labels[:]
    subject.labels.extend(LabelShare(label=f"thing {at}", pictures=2) for at in range(12))
    text = section(html(made_report), "alternatives")
    # 12 of the subject's, and the others' hourglass, triangle and house.
    assert f"{12 + 3 - LABELS_SHOWN} further labels" in text
    assert all(f"subject: thing {at}, 2 of 24" in text for at in range(12))


def test_a_measure_of_its_own_is_a_table() -> None:
    shown = section(html(whole()), "measures")
    assert f"Sharpness {HOSTILE}" in shown
    assert f"edges, {HOSTILE}" in shown
    assert "0.00123 (0.00083 to 0.00163)8 cases" in shown
    assert "17 observations; 1 could not be scored" in shown
    # The control was not measured.
    assert shown.count("8 cases") == 2
    assert "none" in shown


def test_a_picture_is_in_the_file_once() -> None:
    shown = page(whole())
    embedded = [attributes["href"] for attributes in shown.of("image")]
    assert len(embedded) == len(set(embedded))
    assert shown.of("use")
    read: list[str] = []

    def reading(digest: str) -> bytes:
        read.append(digest)
        return png(300, 7)

    pictures = Pictures(reading)
    first, second = pictures.show("a", "one"), pictures.show("a", HOSTILE)
    assert read == ["a"]
    assert 'viewBox="0 0 256 256"' in first
    assert '<use href="#picture-1"/>' in second
    assert "<script" not in second


def test_findings_are_shown_with_their_figures() -> None:
    text = section(html(whole()), "findings")
    assert text.count("one learned token of width 2, norm 5.00") == 3
    for finding in found():
        if finding.losses:
            steps = finding.steps or len(finding.losses)
            assert f"Loss over {steps} steps: {finding.losses[0]:.4g} to {finding.losses[-1]:.4g}" in text
        if finding.HasField("case_index"):
            assert f"{ROLES[finding.role]}, case {finding.case_index}" in text
            assert f"first-success {finding.case_index}" in text
        if finding.label:
            assert f"{ROLES[finding.role]}, {finding.label}" in text
    assert text.count(f"wedge {HOSTILE} box a picture of a hourglass") == 12
    assert text.count("Token ids 17 305 4") == 12
    assert text.count("Weights abababababababab\N{HORIZONTAL ELLIPSIS}") == 12
    assert text.count("0.995 at 10; 0.95 at 100; 0.8 at 400; 0.6 at 800") == 3
    assert text.count("pictures@64 64") == 3


def test_findings_stand_in_order_and_the_rest_is_folded() -> None:
    text = section(html(whole()), "findings")
    heads = re.findall(r"(subject|reference|control), (few-shot@\d+|benign@\d+)", text)
    assert [label for who, label in heads if who == "subject"] == ["benign@5", "benign@40", "few-shot@5", "few-shot@40"]
    cases = re.findall(r"(subject|reference|control), case (\d)", text)
    assert cases == [(who, str(case)) for case in range(4) for who in ("subject", "reference", "control")]
    assert f"{12 - FINDINGS_SHOWN} further findings of unlearn-diff-atk" in text


def test_the_order_in_which_findings_arrive_changes_nothing() -> None:
    findings = found()
    shuffled = findings[:]
    random.Random(5).shuffle(shuffled)
    assert shuffled != findings
    first, second = (made(observed(), each).content for each in (findings, shuffled))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_a_finding_of_nothing_but_steps_can_be_shown() -> None:
    text = section(html(made(observed(), [Finding(evaluation="other", role=SUBJECT, steps=12)])), "findings")
    assert "12 steps" in text
    assert "Loss" not in text.replace("Each loss", "")


def test_arms_that_say_what_was_spent_are_a_curve() -> None:
    text = section(html(whole()), "budget")
    assert "Noise-based, few-shot" in text
    assert "reference 24 of 24 at 160; subject 20 of 24 at 160" in text
    assert "Noise-based, benign" in text
    assert "subject 2 of 24 at 160" in text
    assert "optimisation steps" in text


def test_one_arm_alone_is_no_curve() -> None:
    made_report = made(observed())
    noise = made_report.content.verdict.evaluations[1]
    noise.arms.append(ArmResult(arm="few-shot@40", draws=1, subject=rate(3, 8)))
    assert "few-shot" not in section(html(made_report), "budget")
    noise.arms.append(ArmResult(arm="few-shot@0.5", draws=1, subject=rate(3, 8)))
    text = section(html(made_report), "budget")
    assert "Noise-based, few-shot" in text
    assert "share of the steps" in text


def test_what_is_known_of_an_evaluation_is_said_beside_it() -> None:
    text = section(html(whole()), "evaluations")
    assert (
        "Known: brings the concept back in 46 of 48 cases of models that hold it, falsely in 1 of 24 cases of models "
        "that never learned it." in text
    )
    assert text.count("(testbed 1, <b>two</b>), with the parameters") == 1
    assert "Stopped after 6 of 8 cases" in text
    assert "The control is a placebo, the same procedure for 'zigzag', which neither" in text
    assert "The control is c, a model that never learned" in text
    plain = section(html(made(observed())), "evaluations")
    assert not any(word in plain for word in ("Known:", "known of an evaluation", "Stopped after", "placebo"))


def test_a_calibration_of_one_truth_says_no_more() -> None:
    made_report = whole()
    made_report.content.verdict.evaluations[0].calibration.ClearField("specificity")
    text = section(html(made_report), "evaluations")
    assert "models that hold it." in text
    assert "falsely" not in text


def test_damaged_models_are_ringed() -> None:
    made_report = whole()
    assert "Ringed" not in html(made_report)
    made_report.content.verdict.likelihood.general_damage.value = 0.5
    assert "Ringed: general damage above the tolerance of 0.25" in section(html(made_report), "plane")


def test_a_damaged_model_has_a_second_mark_at_its_whole_loss() -> None:
    made_report = whole()
    measured = made_report.content.verdict.likelihood
    assert "concept\N{RIGHT SINGLE QUOTATION MARK}s whole loss" not in legend(made_report)
    measured.general_damage.value = 3.8
    measured.knowledge = Knowledge.KNOWLEDGE_LOST_WITH_THE_REST
    assert "with general damage added: the concept\N{RIGHT SINGLE QUOTATION MARK}s whole loss" in legend(made_report)
    text = section(html(made_report), "plane")
    assert "Of this subject the bounds say: the concept's pictures have become less likely, together with much" in text
    assert f"whole loss, destruction and general damage{estimate(measured.concept_loss)}" in text
    measured.ClearField("concept_loss")
    measured.ClearField("knowledge")
    older = section(html(made_report), "plane")
    assert "Of this subject" not in older
    assert "whole loss, destruction" not in older


def legend(made_report: Report) -> str:
    found = re.search(r'<svg class="chart plane".*?</svg>\s*<p class="legend">(.*?)</p>', html(made_report), re.DOTALL)
    assert found
    return re.sub(r"\s+", " ", Page(found[1]).text.replace("&rsquo;", "\N{RIGHT SINGLE QUOTATION MARK}"))


def test_each_evaluation_says_what_its_control_assumes() -> None:
    made_report = whole()
    for result in made_report.content.verdict.evaluations:
        result.control_statement = f"The control of {result.name} assumes something."
    text = section(html(made_report), "evaluations")
    assert all(result.control_statement in text for result in made_report.content.verdict.evaluations)
    # An older report has none, and gets what its figures allow.
    for result in made_report.content.verdict.evaluations:
        result.ClearField("control_statement")
    assert "the comparison assumes that it is otherwise like the reference, r." in section(
        html(made_report), "evaluations"
    )


def test_without_a_control_there_is_a_bound_and_no_test() -> None:
    made_report = made(observed())
    result = made_report.content.verdict.evaluations[0]
    result.ClearField("control")
    result.ClearField("reference_excess")
    result.control_kind, result.control_statement = ControlKind.CONTROL_KIND_NONE, ""
    result.excess.CopyFrom(
        Excess(bounds=Interval(upper=0.117), bounds_with_unscored=Interval(upper=0.153), value=0.0, p_holm=0.0)
    )
    text = section(html(made_report), "evaluations")
    assert "subject: excess at most 12 %" in text
    assert "at most +12" in text
    assert "no control and so no test" in text
    assert "with unscored cases counted against it at most +15" in text
    # The other evaluation has a test.
    assert len(re.findall(r"p [=<] [\d.]+ after Holm", text)) == 1


def test_excluded_cases_are_counted_and_explained() -> None:
    made_report = made(observed())
    assert "xcluded" not in section(html(made_report), "evaluations")
    made_report.content.verdict.evaluations[1].subject.excluded = 3
    text = section(html(made_report), "evaluations")
    assert "3 excluded" in text
    assert "Excluded: what the models would be given in these cases already shows the concept." in text


@pytest.mark.parametrize(
    ("decided_by", "words"),
    [
        (DecidedBy.DECIDED_BY_UNSPECIFIED, ["which the judge detected", "one decides, and one measures agreement"]),
        (DecidedBy.DECIDED_BY_JUDGE, ["which the judge detected", "a case is decided bythe judge"]),
        (
            DecidedBy.DECIDED_BY_BOTH,
            [
                "both the judge and the second judge detected",
                "a case is decided byjudge and second judge",
                "two decide",
            ],
        ),
    ],
)
def test_the_page_says_who_decides(decided_by: DecidedBy.ValueType, words: list[str]) -> None:
    made_report = made(observed())
    made_report.content.verdict.decided_by = decided_by
    text = re.sub(r"\s+", " ", page(made_report).text.replace("\n", ""))
    assert all(each in text for each in words), text


def test_figures_that_are_not_finite_draw_nothing() -> None:
    made_report = whole()
    made_report.content.verdict.tracing.points[3].destruction.value = math.nan
    made_report.content.verdict.tracing.points[4].lost_pull.interval.upper = math.inf
    for finding in made_report.content.findings:
        if finding.losses:
            finding.losses[0] = math.nan
        for name in finding.figures:
            finding.figures[name] = math.nan
    text = re.sub(r'base64,[^"]*', "", html(made_report))
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', text)


def test_what_a_guard_withheld_stands_in_every_section() -> None:
    shown = whole()
    shown.content.verdict.alternatives.models[0].withheld = 7
    shown.content.verdict.measures.add(name="edges", title="Edges", observations=20, withheld=9)
    text = Page(html(shown)).text
    assert "7 withheld" in text
    assert "a guard withheld 9, which count as not detected" in re.sub(r"\s+", " ", text)
