"""A report says who asked for it, and is the same when it is rendered again."""

import json
from pathlib import Path

from support.report_by_hand import DESCRIPTIONS, PICTURES, made, observed
from unerase.v1.audits_pb2 import Audit, ReportContent
from unerase_backend.coordinator.execution.reports import write_again, write_reports
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.evidence import Evidence
from unerase_backend.runtime.artifacts import ArtifactStore


def test_a_report_names_its_tenant_each_time_it_is_rendered(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    for picture in PICTURES.values():
        store.put(picture)
    content, observations, end = made(observed()).content, observed(), 1_800_000_000_000_000_000
    audit = Audit(id="a1", create_time=timestamp(end - 10**9), end_time=timestamp(end))
    written = write_reports(store, audit, end, content, DESCRIPTIONS, observations, "safety-team")
    assert json.loads(store.get(written.json))["tenant"] == "safety-team"
    assert b"safety-team" in store.get(written.html)
    kept = ReportContent.FromString(store.get(written.content))
    assert b"safety-team" not in kept.SerializeToString(deterministic=True), "two tenants' content may be the same"
    evidence = Evidence(audit, content.concept, list(content.cases), observations, [])
    assert write_again(store, evidence, written, DESCRIPTIONS, "safety-team") == written
