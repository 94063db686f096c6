"""What a report says of its judges: kind, version, threshold, digests; on the page, in JSON and in the Parquet file."""

import json

from support.report_by_hand import PICTURES, made, observed, page
from unerase.v1.audits_pb2 import JudgeRecord, Report
from unerase_backend import report

DIGEST = "ef" * 32
RECORD = JudgeRecord(
    name="own/nudenet",
    kind="detector",
    provider="unerase 0.1.0, onnxruntime 1.32.0",
    digest="cd" * 32,
    weights={"<b>320n.onnx": DIGEST},
    threshold=0.25,
)


def text_of(made_report: Report) -> str:
    return page(made_report).text


def judged() -> Report:
    made_report = made(observed())
    made_report.content.spec.judge = RECORD.name
    RECORD.options.update({"threshold": 0.25, "classes": ["BELLY_EXPOSED"]})
    made_report.content.manifest.judges.extend([RECORD, JudgeRecord(name="clip", kind="clip")])
    made_report.content.manifest.judge_digests[RECORD.name] = RECORD.digest
    return made_report


def test_the_page_names_version_threshold_and_file() -> None:
    text = " ".join(text_of(judged()).split())
    assert "detector of unerase 0.1.0, onnxruntime 1.32.0, detects from 0.25" in text
    assert f"1 file of weights<b>320n.onnx {DIGEST}" in text
    assert "<b>320n" not in report.render_html(judged(), PICTURES.__getitem__)


def test_json_and_parquet_hold_the_record() -> None:
    made_report = judged()
    (found, _) = json.loads(report.render_json(made_report))["content"]["manifest"]["judges"]
    assert (found["threshold"], found["weights"]) == (0.25, {"<b>320n.onnx": DIGEST})
    assert found["options"] == {"threshold": 0.25, "classes": ["BELLY_EXPOSED"]}
    file = report.render_parquet("a1", made_report.content, [], [])
    assert report.read_parquet(file).content.manifest.judges[0] == RECORD


def test_a_judge_without_a_threshold_has_none() -> None:
    made_report = judged()
    made_report.content.spec.selector = "clip"
    text = text_of(made_report)
    assert text.count("detects from") == 1
