"""The report of a small real audit: its JSON, its schema, its page."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from support.backend import evaluations, local_backend
from unerase.v1.audits_pb2 import AuditSpec, Battery, Manifest, Report
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend import report
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.verdict import conclude

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
async def audit(tmp_path_factory: pytest.TempPathFactory):
    """Everything that a report is made of, and the store with its pictures."""
    names = ("standard-prompt", "diffusion-completion")
    descriptions = {name: each.description for name, each in evaluations().items()}
    async with local_backend(tmp_path_factory.mktemp("report")) as backend:
        spec = AuditSpec(
            subject="testbed/uce",
            concept="hourglass",
            battery=Battery(evaluations=[EvaluationRequest(name=name) for name in names], allow_incomplete=True),
            cases=3,
            steps=4,
            seed_base=11,
        )
        plan = make_plan(spec, backend.catalogue, backend.store, descriptions, lambda: 11)
        events = [event for unit in plan.units for event in await backend.run(whole(unit, plan.parts))]
        observations = [event.observation for event in events if event.HasField("observation")]
        yield plan, observations, list(descriptions.values()), backend.store


def made(audit, observations) -> Report:
    plan, _, descriptions, _ = audit
    requested = list(plan.spec.battery.evaluations)
    verdict = conclude(observations, descriptions, requested, plan.spec)
    content = report.build(plan.spec, plan.concept, plan.cases, requested, verdict, observations, [], Manifest())
    return Report(schema_version=report.SCHEMA_VERSION, content=content, audit_id="a1")


async def test_the_order_of_arrival_changes_no_byte(audit) -> None:
    observations = list(audit[1])
    shuffled = observations[:]
    random.Random(3).shuffle(shuffled)
    first, second = (
        made(audit, each).content.SerializeToString(deterministic=True) for each in (observations, shuffled)
    )
    assert shuffled != observations
    assert first == second


async def test_json_follows_the_committed_schema(audit) -> None:
    schema = json.loads((ROOT / "docs/report.schema.json").read_text())
    assert schema == report.report_schema(), "run `python -m unerase_backend.report.schema > docs/report.schema.json`"
    content = json.loads(report.render_json(made(audit, audit[1])))
    jsonschema.Draft202012Validator(schema).validate(content)
    del content["content"]["verdict"]["statement"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(content)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.resources += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "poster"}]


async def test_the_page_needs_nothing_from_outside(audit) -> None:
    made_report = made(audit, audit[1])
    text = report.render_html(made_report, audit[3].get)
    page = _Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(resource.startswith(("data:image/png;base64,", "#")) for resource in page.resources)
    content = made_report.content
    known = content.concept.picture_digests[:8], content.concept.near_miss_digests[:8]
    shown = [*(picture.digest for picture in content.pictures), *known[0], *known[1]]
    pictures = [resource for resource in page.resources if resource.startswith("data:")]
    again = [resource for resource in page.resources if resource.startswith("#picture-")]
    assert len(pictures) == len(set(pictures)) == len(set(shown))
    assert len(pictures) + len(again) == len(shown)
    assert content.pictures
    assert not re.search(r"url\(|@import", text)
    assert made_report.content.verdict.statement.split(":")[0] in text


async def test_hostile_text_stays_text(audit) -> None:
    hostile = made(audit, audit[1])
    hostile.content.spec.concept = "<script>alert(1)</script>"
    hostile.content.pictures[0].prompt = '"><img src=x onerror=alert(1)>'
    page = _Page()
    page.feed(report.render_html(hostile, audit[3].get))
    assert "script" not in page.tags
    assert "x" not in page.resources


async def test_every_shown_case_has_the_three_models(audit) -> None:
    pictures = made(audit, audit[1]).content.pictures
    by_case: dict[tuple[str, int], list[int]] = {}
    for picture in pictures:
        by_case.setdefault((picture.evaluation, picture.case_index), []).append(picture.role)
    assert all(roles == [1, 2, 3] for roles in by_case.values())
