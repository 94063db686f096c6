"""An audit as Inspect's task, run, read and shown by Inspect itself: `make integrations`."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import report_by_hand
from support.report_by_hand import CASES, SUBJECT
from support.scripted_server import Script, serve
from unerase.v1.audits_pb2 import AuditState
from unerase.v1.types_pb2 import DecidedBy, Observation, SampleStatus
from unerase_backend.report.parquet import render_parquet

pytestmark = pytest.mark.integrations
inspect_ai = pytest.importorskip("inspect_ai")

from inspect_ai.log import EvalLog, read_eval_log  # noqa: E402

LOST = 5
"""A case of which every draw is unscored."""


def observations() -> list[Observation]:
    seen = report_by_hand.observed()
    for each in seen:
        if each.role == SUBJECT and each.evaluation == "noise-based":
            if each.case_index == LOST:
                each.status, each.reason = SampleStatus.SAMPLE_STATUS_UNSCORED, "latents are not finite"
            elif each.case_index == 2 and each.variant == 0:
                each.status = SampleStatus.SAMPLE_STATUS_EXCLUDED
    return seen


@pytest.fixture
def script() -> Script:
    """An audit of two evaluations and a measure."""
    seen = observations()
    script = Script(report=report_by_hand.made(seen, decided_by=DecidedBy.DECIDED_BY_BOTH))
    content = script.report.content
    script.parquet = render_parquet("a1", content, report_by_hand.DESCRIPTIONS, seen)
    script.evaluations = list(content.descriptions)
    for name in ("standard-prompt", "noise-based", "likelihood"):
        script.cost.evaluations.add(evaluation=name)
    return script


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    server, port = serve(script, "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def evaluated(address: str, folder: Path, **arguments: Any) -> EvalLog:
    """What Inspect's log says, read from its file."""
    (log,) = inspect_ai.eval(
        "unerase/audit",
        task_args={"subject": "s", "concept": "hourglass", "cases": CASES, "address": address, **arguments},
        model="none",
        log_dir=str(folder),
        display="none",
    )
    return read_eval_log(log.location)


def test_the_log_says_what_the_verdict_says(script: Script, address: str, tmp_path: Path) -> None:
    log = evaluated(address, tmp_path)
    assert log.status == "success", log.error
    assert log.samples is not None
    assert len(log.samples) == CASES
    assert log.results is not None
    scores = {score.name: score for score in log.results.scores}
    # A measure has no cases to score.
    assert set(scores) == {"standard-prompt", "noise-based"}
    for result in script.report.content.verdict.evaluations:
        found = scores[result.name]
        figures = {name: each.value for name, each in found.metrics.items()}
        assert figures["detection_rate"] == pytest.approx(result.subject.hits / result.subject.cases)
        assert figures["wilson_lower"] == pytest.approx(result.subject.wilson.lower)
        assert figures["wilson_upper"] == pytest.approx(result.subject.wilson.upper)
        assert found.scored_samples == result.subject.cases
        assert found.unscored_samples == CASES - result.subject.cases
    assert scores["noise-based"].unscored_samples == 1


def test_a_sample_has_its_prompt_pictures_and_judges(script: Script, address: str, tmp_path: Path) -> None:
    log = evaluated(address, tmp_path)
    assert log.samples is not None
    by_case = {sample.id: sample for sample in log.samples}
    lost = by_case[LOST].scores["noise-based"]
    assert math.isnan(lost.as_float())
    assert (lost.reason, lost.explanation) == ("scoring_failed", "latents are not finite")
    sample = by_case[1]
    assert sample.messages[0].text == report_by_hand.HOSTILE
    pictures = [part for part in sample.messages[1].content if part.type == "image"]
    assert len(pictures) == 2
    score = sample.scores["noise-based"]
    assert score.as_float() == 1
    assert score.metadata["judges"]["judge"] == {"score": 1.0, "detected": True, "label": ""}
    assert sample.metadata["audit"] == "a1"
    assert sample.metadata["verdicts"]["verdict"]["statement"] == script.report.content.verdict.statement


def test_pictures_of_a_sensitive_concept_stay_away(script: Script, address: str, tmp_path: Path) -> None:
    script.report.content.concept.sensitive = True
    log = evaluated(address, tmp_path / "without")
    assert not [sample for sample in log.samples or [] for part in sample.messages[1].content if part.type == "image"]
    log = evaluated(address, tmp_path / "with", pictures=True)
    assert [sample for sample in log.samples or [] for part in sample.messages[1].content if part.type == "image"]


def test_a_rate_over_no_case_is_not_a_number(script: Script, address: str, tmp_path: Path) -> None:
    seen = observations()
    for each in seen:
        each.status = SampleStatus.SAMPLE_STATUS_UNSCORED
    script.parquet = render_parquet("a1", script.report.content, report_by_hand.DESCRIPTIONS, seen)
    log = evaluated(address, tmp_path)
    assert log.results is not None
    for score in log.results.scores:
        assert score.scored_samples == 0
        assert all(math.isnan(each.value) for each in score.metrics.values())


def test_an_audit_that_fails_is_an_error(script: Script, address: str, tmp_path: Path) -> None:
    script.state = AuditState.AUDIT_STATE_FAILED
    log = evaluated(address, tmp_path)
    assert log.status == "error"
    assert log.error is not None
    assert "audit a1 has failed: an artefact is damaged" in log.error.message


def test_the_command_finds_the_task_and_the_viewer_shows_its_log(address: str, tmp_path: Path) -> None:
    inspect = Path(sys.executable).parent / "inspect"
    ended = subprocess.run(
        [
            *(
                str(inspect),
                "eval",
                "unerase/audit",
                "-T",
                "subject=s",
                "-T",
                "concept=hourglass",
                "-T",
                f"cases={CASES}",
            ),
            *("--log-dir", str(tmp_path), "--display", "plain"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "UNERASE_ADDRESS": address, "HOME": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (file,) = tmp_path.glob("*.eval")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    viewer = subprocess.Popen(
        [str(inspect), "view", "start", "--log-dir", str(tmp_path), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    try:
        page = fetched(f"http://127.0.0.1:{port}/", viewer)
        assert b"Inspect View" in page
        assert file.name in fetched(f"http://127.0.0.1:{port}/api/logs", viewer).decode()
        shown = json.loads(fetched(f"http://127.0.0.1:{port}/api/logs/{file.as_uri()}", viewer))
        assert shown["status"] == "success"
        assert {score["name"] for score in shown["results"]["scores"]} == {"standard-prompt", "noise-based"}
    finally:
        viewer.terminate()
        viewer.communicate(timeout=60)


def fetched(url: str, server: subprocess.Popen[bytes]) -> bytes:
    """What a server answers, once it does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
