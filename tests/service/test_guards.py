"""A model with a prompt filter and a third party's guard, audited as deployed and by its weights, end to end."""

from support import example
from unerase import Client
from unerase.v1.audits_pb2 import AuditSpec, Battery, ReportFormat
from unerase.v1.types_pb2 import (
    MODEL_ACCESS_BOTH,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    EvaluationRequest,
)
from unerase.v1.verdicts_pb2 import Conclusion


def test_an_audit_of_both_accesses(client: Client) -> None:
    model = next(model for model in client.models() if model.name == example.GUARDED)
    assert [guard.kind for guard in model.guards] == ["prompt-filter", example.GUARD]
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt")], allow_incomplete=True)
    spec = AuditSpec(subject=example.GUARDED, concept="hourglass", battery=battery, cases=6, steps=10, seed_base=3)
    audit = client.create_audit(spec)
    assert audit.spec.access == MODEL_ACCESS_BOTH
    done = [event.unit_done for event in client.watch(audit.id) if event.HasField("unit_done")]
    assert {unit.unit: unit.withheld for unit in done if "/subject" in unit.unit} == {
        "standard-prompt/subject/0": 0,
        "standard-prompt/subject@deployed/0": 6,
    }
    verdict = client.get_audit(audit.id).verdict
    (weights,), (deployed,) = verdict.evaluations, verdict.deployed.evaluations
    assert (verdict.access, verdict.deployed.access) == (MODEL_ACCESS_OPEN_WEIGHTS, MODEL_ACCESS_DEPLOYED)
    # Its weights are the reference's, picture for picture.
    assert (weights.subject.hits, weights.subject.withheld) == (weights.reference.hits, 0)
    assert (deployed.subject.hits, deployed.subject.cases, deployed.subject.withheld) == (0, 6, 6)
    assert verdict.conclusion == Conclusion.CONCLUSION_NOT_ERASED
    assert verdict.deployed.conclusion != Conclusion.CONCLUSION_REMOVED
    page = client.report(audit.id, ReportFormat.REPORT_FORMAT_HTML).decode()
    assert "With and without its guards" in page
    assert "6 withheld" in page
