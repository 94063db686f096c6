"""A report as an in-toto attestation: a Statement v1 with a test-result predicate, signed as DSSE.

The subjects are the model as a whole and, in an audit, each file of its weights that its base does not share. The
predicate names the report by its SHA-256, so that the evidence behind a signature can be told. Signing needs the extra
`in-toto` (securesystemslib).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unerase.integrations._reports import (
    LEVELS,
    ReportFile,
    conclusion_word,
    outcome_word,
    own_files,
    subject_of,
    verdicts_of,
)
from unerase.v1.audits_pb2 import Report
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell
from unerase.v1.gates_pb2 import GateOutcome
from unerase.v1.verdicts_pb2 import Conclusion, Outcome

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MODEL_DIGEST = "uneraseModel"
"""The algorithm of a whole model's digest: SHA-256 over the digests of everything it is made of. No single file has
it, so it is not called sha256."""
PASSED, WARNED, FAILED = "PASSED", "WARNED", "FAILED"

_BY_OUTCOME = {Outcome.OUTCOME_DOES_NOT_RECOVER: PASSED, Outcome.OUTCOME_RECOVERS: FAILED}
_BY_GATE = {GateOutcome.GATE_OUTCOME_PASS: PASSED, GateOutcome.GATE_OUTCOME_FAIL: FAILED}


def statement(file: ReportFile) -> dict[str, Any]:
    """Return the statement about a report.

    An audit passes if the concept is removed, and fails if it is not erased or only avoided; all else is a warning. Its
    tests are its evaluations. A campaign has its gate's result, or without a gate that of its worst cell; its tests are
    its cells.

    Raises:
        ValueError: the report does not say what the model was.
    """
    report = file.message
    subjects, tests, result = _of_campaign(report) if isinstance(report, CampaignReport) else _of_audit(report)
    if not subjects:
        raise ValueError(f"{file.name} has no digest of a model, so there is nothing that a statement could be about")
    by_result = {kind: [name for name, of in tests if of == kind] for kind in (PASSED, WARNED, FAILED)}
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": TEST_RESULT,
        "predicate": {
            "result": result,
            "configuration": _configuration(file),
            "passedTests": by_result[PASSED],
            "warnedTests": by_result[WARNED],
            "failedTests": by_result[FAILED],
        },
    }


def sign(statement: dict[str, Any], key: Path) -> dict[str, Any]:
    """Return the DSSE envelope of a statement, signed with the private key of a PEM file (PKCS #8, not encrypted).

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no such key, or securesystemslib is not installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner
    except ImportError:
        raise ValueError("signing needs securesystemslib; install it with: pip install 'unerase[in-toto]'") from None
    content = key.read_bytes()
    try:
        signer = CryptoSigner(load_pem_private_key(content, None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # Nothing of the key itself is in these messages.
        raise ValueError(f"{key} holds no private key that can sign: {error}") from None
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    written: dict[str, Any] = envelope.to_dict()
    return written


Parts = tuple[list[dict[str, Any]], list[tuple[str, str]], str]
"""Subjects, tests with their results, and the whole's result."""


def _of_audit(report: Report) -> Parts:
    model = subject_of(report)
    subjects = [_model(model.name, model.digest)] if model.digest else []
    subjects += [
        {"name": f"{model.name}: {part}", "digest": {"sha256": digest}} for part, digest in own_files(report).items()
    ]
    tests = [
        (f"{about}: {result.name}" if about else result.name, _BY_OUTCOME.get(result.outcome, WARNED))
        for about, verdict in verdicts_of(report)
        for result in verdict.evaluations
    ]
    return subjects, tests, _worst(_result(verdict.conclusion) for _, verdict in verdicts_of(report))


def _of_campaign(report: CampaignReport) -> Parts:
    cells = report.content.cells
    digests = {cell.subject: cell.subject_digest for cell in cells if cell.subject_digest}
    tests = [(f"{cell.subject} x {cell.concept}", _of_cell(cell)) for cell in cells]
    if report.content.HasField("gate_result"):
        gate = report.content.gate_result
        result = _BY_GATE.get(gate.outcome, WARNED)
        findings = {found.cell: found.outcome for found in reversed(gate.findings)}
        # A gate lists its findings up to a number, the failed ones first: of further cells nothing is known.
        listed = len(findings) >= gate.failed + gate.undecided
        others = GateOutcome.GATE_OUTCOME_PASS if listed else GateOutcome.GATE_OUTCOME_UNDECIDED
        concepts = set(gate.gate.concepts)
        tests = [
            (name, _BY_GATE.get(findings.get(cell.index, others), WARNED))
            for cell, (name, _) in zip(cells, tests, strict=True)
            if not concepts or cell.concept in concepts
        ]
    else:
        result = _worst(of for _, of in tests)
    return [_model(name, digest) for name, digest in digests.items()], tests, result


def _of_cell(cell: CampaignReportCell) -> str:
    if not cell.HasField("verdict"):
        return WARNED
    deployed = [cell.verdict.deployed.conclusion] if cell.verdict.HasField("deployed") else []
    return _worst(_result(each) for each in (cell.verdict.conclusion, *deployed))


def _result(conclusion: Conclusion.ValueType) -> str:
    if conclusion == Conclusion.CONCLUSION_REMOVED:
        return PASSED
    return FAILED if conclusion in LEVELS else WARNED


def _worst(results: Iterable[str]) -> str:
    """Return the worst result; without one, nothing has passed."""
    found = set(results)
    return next((each for each in (FAILED, WARNED, PASSED) if each in found), WARNED)


def _model(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {MODEL_DIGEST: digest}}


def _configuration(file: ReportFile) -> list[dict[str, Any]]:
    """What was asked and what came of it: the report, the comparability of its figures, its judges."""
    report = file.message
    said: dict[str, Any] = {}
    if isinstance(report, CampaignReport):
        said["campaign"] = report.campaign_id
        if report.content.HasField("gate_result"):
            said["statement"] = report.content.gate_result.statement
    else:
        said["audit"] = report.audit_id
        for about, verdict in verdicts_of(report):
            prefix = f"{about}_" if about else ""
            said[f"{prefix}conclusion"] = conclusion_word(verdict)
            said[f"{prefix}statement"] = verdict.statement
            said[f"{prefix}damaged"] = verdict.damaged
            said[f"{prefix}outcomes"] = {each.name: outcome_word(each) for each in verdict.evaluations}
            if verdict.not_applicable:
                said[f"{prefix}not_applicable"] = {each.name: each.why.reason for each in verdict.not_applicable}
    configuration = [
        {"name": file.name, "digest": {"sha256": file.digest}, "mediaType": "application/json", "annotations": said}
    ]
    if isinstance(report, Report):
        content = report.content
        if content.comparability_digest:
            configuration.append(
                {"name": "comparability", "digest": {"uneraseComparability": content.comparability_digest}}
            )
        configuration += [
            {"name": judge, "digest": {"uneraseJudge": digest}}
            for judge, digest in sorted(content.manifest.judge_digests.items())
        ]
    return configuration
