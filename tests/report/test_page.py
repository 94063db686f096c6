"""The page and the JSON of reports made of observations written down by hand: what a healthy audit does not show."""

import json
import math
import re

import jsonschema
import pytest

from support.report_by_hand import (
    CASES,
    HOSTILE,
    PICTURES,
    SUBJECT,
    Page,
    made,
    observed,
    page,
    png,
)
from unerase.v1.audits_pb2 import AuditSpec, Manifest, Report
from unerase.v1.types_pb2 import DecidedBy, Finding, SampleStatus, Tensor
from unerase.v1.verdicts_pb2 import Estimate, Interval
from unerase_backend import report
from unerase_backend.report.content import pictures_of
from unerase_backend.report.formatting import estimate, p_value, points
from unerase_backend.report.pictures import MAX_SIDE, data_uri
from unerase_backend.report.schema import canonical_json


def test_the_page_is_well_formed_and_accessible() -> None:
    text = report.render_html(made(observed()), PICTURES.__getitem__)
    shown = Page(text)
    assert text.startswith("<!doctype html>")
    assert shown.open == []
    assert len(shown.of("h1")) == 1
    assert all(attributes.get("scope") in {"col", "row"} for attributes in shown.of("th"))
    assert not shown.of("img")
    titled = [at for at, (tag, attributes) in enumerate(shown.tags) if tag == "svg" and "role" in attributes]
    assert all(shown.tags[at + 1][0] == "title" for at in titled)
    assert len(titled) == len([svg for svg in shown.of("svg") if svg.get("aria-hidden") != "true"]) == shown.titles - 1
    anchors = {link["href"].removeprefix("#") for link in shown.of("a")}
    identifiers = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert anchors <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))
    assert "nan" not in re.sub(r"data:image/[a-z]+;base64,[^\"]*", "", text).lower().replace("finance", "")


def test_nothing_comes_from_outside() -> None:
    shown = page(made(observed()))
    assert not shown.of("script", "link", "iframe", "object", "embed", "base", "form")
    for tag, attributes in shown.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "action", "poster", "data", "srcset", "xlink:href"}:
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name)
    assert not re.search(r"url\(|@import|https?:", report.render_html(made(observed()), PICTURES.__getitem__))


def test_pictures_of_a_sensitive_concept_are_blurred_until_asked_for() -> None:
    content = made(observed())
    plain = page(content)
    assert not plain.of("input")
    assert "class" not in plain.of("body")[0]
    content.content.concept.sensitive = True
    shown = page(content)
    (box,) = shown.of("input")
    assert (box["type"], box["id"], "checked" in box) == ("checkbox", "unveil", False)
    assert [label["for"] for label in shown.of("label")] == ["unveil"]
    assert shown.of("body")[0]["class"] == "sensitive"


def test_hostile_text_is_shown_as_text() -> None:
    assert HOSTILE in page(made(observed())).text


def test_the_pictures_are_the_draws_that_decided() -> None:
    """Against the rule written down again: of the deciding draws, the selector's favourite."""
    observations = observed()
    content = made(observations).content
    noise = next(result for result in content.verdict.evaluations if result.name == "noise-based")
    shown = [picture for picture in content.pictures if picture.evaluation == "noise-based"]
    assert noise.subject.hits == CASES // 2
    assert [picture.case_index for picture in shown if picture.role == SUBJECT] == [1, 3, 0, 2]
    for picture in shown:
        assert picture.arm == "noise"
        assert picture.variant == (1 if picture.case_index % 2 else 2)
        (drawn,) = [
            each
            for each in observations
            if (each.evaluation, each.role, each.case_index, each.arm, each.variant)
            == ("noise-based", picture.role, picture.case_index, "noise", picture.variant)
        ]
        assert (picture.digest, picture.detected) == (drawn.picture_digest, drawn.judgements[1].detected)
    plain = [picture for picture in content.pictures if picture.evaluation == "standard-prompt"]
    assert [picture.case_index for picture in plain if picture.role == SUBJECT] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("decided_by", "hit"), [(DecidedBy.DECIDED_BY_JUDGE, True), (DecidedBy.DECIDED_BY_BOTH, False)]
)
def test_a_picture_is_a_hit_for_those_who_decide(decided_by: DecidedBy.ValueType, hit: bool) -> None:
    observations = observed()
    for each in observations:
        if each.evaluation == "noise-based":
            each.judgements[2].detected = False
    result = next(each for each in made(observations).content.verdict.evaluations if each.name == "noise-based")
    shown = pictures_of(result, observations, decided_by)
    assert any(picture.detected for picture in shown) == hit


def test_an_unscored_draw_is_counted_and_not_shown() -> None:
    observations = observed()
    lost = next(each for each in observations if each.evaluation == "standard-prompt" and each.role == SUBJECT)
    lost.status, lost.reason = SampleStatus.SAMPLE_STATUS_UNSCORED, "not finite"
    del lost.judgements[:]
    made_report = made(observations)
    shown = {(picture.role, picture.case_index) for picture in made_report.content.pictures if picture.arm == ""}
    assert (SUBJECT, 0) not in shown
    assert "1 unscored" in page(made_report).text


def test_without_a_control_there_is_no_test() -> None:
    text = page(made(observed(control=False))).text
    assert "There is no control in the 2 evaluations" in text
    assert "no test" in text


def test_without_pull_there_is_no_plane() -> None:
    made_report = made(observed(pull=0.0))
    assert not made_report.content.verdict.likelihood.HasField("lost_pull")
    shown = page(made_report)
    assert "not measurable" in shown.text
    assert not any("plane" in svg.get("class", "") for svg in shown.of("svg"))
    assert any("plane" in svg.get("class", "") for svg in page(made(observed())).of("svg"))


def test_a_waived_battery_is_shown() -> None:
    made_report = made(observed())
    assert made_report.content.verdict.incomplete_waived
    text = page(made_report).text
    assert "incomplete battery, waived" in text
    assert all(name in text for name in made_report.content.verdict.missing)


def test_findings_are_shown() -> None:
    finding = Finding(
        evaluation="textual-inversion",
        role=SUBJECT,
        model="s",
        prompt=HOSTILE,
        placeholder="<learned>",
        embedding=Tensor(shape=[1, 2], values=b"\x00\x00\x40\x40\x00\x00\x80\x40"),
        losses=[0.5, math.nan, 0.25],
    )
    text = page(made(observed(), [finding])).text
    assert "<learned>" in text
    assert "one learned token of width 2, norm 5.00" in text
    assert "Loss over 3 steps" in text
    finding.steps = 250
    assert "Loss over 250 steps" in page(made(observed(), [finding])).text


def test_an_empty_report_can_be_shown() -> None:
    """Whatever is missing: no verdict, no pictures, no tolerances."""
    assert "No verdict" in page(Report(schema_version="1.0")).text


def test_a_missing_picture_is_an_error() -> None:
    with pytest.raises(KeyError):
        report.render_html(made(observed()), {}.__getitem__)


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (MAX_SIDE, "png"), (MAX_SIDE + 1, "jpeg")])
def test_large_pictures_are_reduced(side: int, kind: str) -> None:
    uri, width, height = data_uri(png(side, 10))
    assert uri.startswith(f"data:image/{kind};base64,")
    assert (width, height) == (min(side, MAX_SIDE), min(side, MAX_SIDE))


def test_figures_in_words() -> None:
    assert [points(value) for value in (0.385, -0.142, 0.001, -0.001, 1, math.nan)] == [
        "+38",
        "\N{MINUS SIGN}14",
        "0",
        "0",
        "+100",
        "none",
    ]
    assert [p_value(p) for p in (1, 0.0123, 2.4e-7)] == ["= 1", "= 0.012", "< 0.0001"]
    figure = Estimate(value=-0.004, interval=Interval(lower=-0.5, upper=math.inf))
    assert estimate(figure) == "0.00 (\N{MINUS SIGN}0.50 to none)"


def test_numbers_that_are_not_finite_survive_the_json() -> None:
    made_report = made(observed())
    power = made_report.content.verdict.power
    power.at_10_percent, power.at_20_percent, power.at_40_percent = math.nan, math.inf, -math.inf
    content = json.loads(report.render_json(made_report), parse_constant=pytest.fail)
    jsonschema.Draft202012Validator(report.report_schema()).validate(content)
    shown = content["content"]["verdict"]["power"]
    assert (shown["at_10_percent"], shown["at_20_percent"], shown["at_40_percent"]) == ("NaN", "Infinity", "-Infinity")


def test_json_is_canonical() -> None:
    """Equal messages are equal bytes, whatever the order in which their maps were filled."""
    first, second = Manifest(), Manifest()
    for name in ("torch", "ray", "dbos"):
        first.versions[name] = name
    for name in ("dbos", "torch", "ray"):
        second.versions[name] = name
    assert canonical_json(first) == canonical_json(second)
    assert json.loads(canonical_json(AuditSpec(seed_base=2**63)))["seed_base"] == str(2**63)
