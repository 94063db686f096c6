"""Records against Every Eval Ever's own schema: `make integrations`.

The package itself asks for a newer Python than this project has, so it is installed without what it depends on, and
its schema is validated with jsonschema.
"""

import json
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import pytest

from support import campaign_by_hand, report_by_hand
from unerase.integrations.every_eval_ever import AVAILABILITY, RELATIONSHIPS, SCHEMA_VERSION, Source, record
from unerase.v1.audits_pb2 import Report

pytestmark = pytest.mark.integrations
pytest.importorskip("every_eval_ever")
jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads(files("every_eval_ever").joinpath("schemas/eval.schema.json").read_text())
NOW = datetime(2026, 11, 29, tzinfo=UTC)


def of(report: Report, **source: Any) -> dict[str, Any]:
    written = record(report, Source(**{"organisation": "Example", **source}), NOW)
    # What a strict reader of JSON gets.
    strict: dict[str, Any] = json.loads(json.dumps(written, allow_nan=False))
    return strict


def valid(written: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(written)


def test_the_schema_is_the_version_that_records_say() -> None:
    assert SCHEMA["version"] == SCHEMA_VERSION


def test_what_does_not_apply_has_no_score_and_its_reason_stands_with_the_conclusion() -> None:
    lacking = {"diffusion-completion": "a thing is needed", "likelihood": "another is"}
    written = of(report_by_hand.made(report_by_hand.observed(), inapplicable=lacking))
    valid(written)
    names = [each["evaluation_name"] for each in written["evaluation_results"]]
    assert not any("completion" in name or "destruction" in name for name in names)
    details = written["evaluation_results"][0]["score_details"]["details"]
    assert details["not_applicable"] == "likelihood: another is; diffusion-completion: a thing is needed"


@pytest.mark.parametrize("conclusion", campaign_by_hand.CONCLUSIONS)
def test_a_record_is_valid(conclusion: Any) -> None:
    report = report_by_hand.whole()
    valid(of(report))
    report.content.verdict.CopyFrom(campaign_by_hand.verdict(conclusion))
    written = of(report)
    valid(written)
    # An empty list of results would be valid, too.
    assert len(written["evaluation_results"]) > 8


def test_every_relationship_and_availability_is_valid() -> None:
    for relationship in RELATIONSHIPS:
        valid(of(report_by_hand.whole(), relationship=relationship))
    for availability in AVAILABILITY:
        valid(of(report_by_hand.whole(), availability=availability))


def test_the_schema_refuses_what_a_record_must_not_lack() -> None:
    written = of(report_by_hand.whole())
    del written["evaluation_results"][1]["metric_config"]["max_score"]
    with pytest.raises(jsonschema.ValidationError):
        valid(written)


def test_the_packages_own_checks_find_nothing(tmp_path: Any) -> None:
    """Scores within their bounds and intervals around them, as that project's validator looks for."""
    core = pytest.importorskip("every_eval_ever.validator.validation_core")
    written = of(report_by_hand.whole(), model_id="acme/edited")
    assert core.check_score_metadata(written) == []
    assert core.check_model_deployment(written) == []
    broken = json.loads(json.dumps(written))
    broken["evaluation_results"][1]["score_details"]["score"] = 1.5
    assert core.check_score_metadata(broken)
