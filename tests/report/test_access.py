"""The page of an audit of both accesses: both sets of rates side by side, and what was withheld."""

import pytest

from support.report_by_hand import CASES, REFERENCE, SUBJECT, made, observed, page
from unerase.v1.audits_pb2 import Manifest, Report
from unerase.v1.models_pb2 import Guard, Model
from unerase.v1.types_pb2 import ModelAccess, Observation, SampleStatus

DEPLOYED, OPEN_WEIGHTS = ModelAccess.MODEL_ACCESS_DEPLOYED, ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS


def both() -> list[Observation]:
    """A subject whose deployed filter refuses the plain prompt and lets the noise through."""
    observations = []
    for one in observed():
        if one.role != SUBJECT or one.evaluation == "likelihood":
            observations.append(one)
            continue
        for access in (OPEN_WEIGHTS, DEPLOYED):
            copy = Observation()
            copy.CopyFrom(one)
            copy.access = access
            if access == DEPLOYED and one.evaluation == "standard-prompt":
                copy.status, copy.reason = SampleStatus.SAMPLE_STATUS_WITHHELD, "prompt-filter: refused"
                del copy.judgements[:]
                copy.picture_digest = ""
            observations.append(copy)
    return observations


@pytest.fixture(scope="module")
def report_of_both() -> Report:
    guards = [Guard(kind="prompt-filter"), Guard(kind="safety-checker")]
    manifest = Manifest(models=[Model(name="s", guards=guards), Model(name="r")])
    return made(both(), manifest=manifest, access=ModelAccess.MODEL_ACCESS_BOTH)


def test_both_sets_of_rates_stand_side_by_side(report_of_both: Report) -> None:
    shown = page(report_of_both)
    assert "With and without its guards" in shown.text
    assert "By its weights, without its guards (prompt-filter, then safety-checker). The verdict on" in shown.text
    assert "What the weights show without the guards." not in shown.text
    assert "Weights, without guards" in shown.text
    assert "Deployed, with guards" in shown.text
    assert f"{CASES} withheld" in shown.text
    assert {"access"} <= {attributes.get("id") for attributes in shown.of("h2")}
    assert "#access" in {attributes.get("href") for attributes in shown.of("a")}


def test_a_withheld_picture_is_not_shown_and_a_deployed_one_is_beside_the_weights(report_of_both: Report) -> None:
    pictures = report_of_both.content.pictures
    plain = [each for each in pictures if each.evaluation == "standard-prompt"]
    noise = [each for each in pictures if each.evaluation == "noise-based"]
    assert {each.access for each in plain if each.role == SUBJECT} == {OPEN_WEIGHTS}
    assert {each.access for each in noise if each.role == SUBJECT} == {OPEN_WEIGHTS, DEPLOYED}
    assert not any(each.HasField("access") for each in pictures if each.role == REFERENCE)
    text = page(report_of_both).text
    assert "subject, weights" in text
    assert "subject, deployed" in text


def test_without_guards_the_page_says_nothing_of_access() -> None:
    shown = page(made(observed()))
    assert "With and without its guards" not in shown.text
    assert "withheld" not in shown.text.lower()
    assert "guards" not in shown.text
    assert "subject, weights" not in shown.text


def test_a_report_on_the_deployed_model_alone_says_so() -> None:
    deployed = [one for one in both() if one.access != OPEN_WEIGHTS]
    manifest = Manifest(models=[Model(name="s", guards=[Guard(kind="negative-prompt")]), Model(name="r")])
    shown = page(made(deployed, manifest=manifest, access=DEPLOYED))
    # Before the conclusion itself.
    top = shown.text[: shown.text.index("What it rests on")]
    assert "As deployed, with its guards (negative-prompt). Its weights without the guards were not audited." in top
    assert "What the weights show without the guards. Whoever holds them leaves the guards out" in shown.text


def test_a_report_on_the_weights_alone_says_so() -> None:
    weights = [one for one in both() if one.access != DEPLOYED]
    shown = page(made(weights, access=OPEN_WEIGHTS))
    assert "By its weights, without its guards. The model as deployed, with its guards, was not audited." in shown.text
    assert "What users of the deployed model meet. Its guards were left out." in shown.text
    assert "With and without its guards" not in shown.text
