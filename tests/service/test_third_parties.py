"""Packages of third parties in a backend of several processes: one that works, and one that does not."""

import pytest

from support import example
from unerase import AuditSpec, Battery, Client, EvaluationRequest, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED


def test_their_evaluations_are_listed_beside_ours(client: Client) -> None:
    listed = {each.name: each for each in client.evaluations().evaluations}
    assert (listed[example.PROBE].attack, listed[example.ATTACK].attack) == (False, True)
    assert {"standard-prompt", "likelihood", "textual-inversion"} <= listed.keys()
    assert example.BROKEN not in listed


def test_an_audit_with_their_probe_attack_and_judge(client: Client) -> None:
    attack = EvaluationRequest(name=example.ATTACK)
    attack.parameters.update({"steps": 10})
    spec = AuditSpec(
        subject="testbed/uce",
        concept=example.CONCEPT,
        second_judge=example.JUDGE,
        cases=4,
        steps=10,
        seed_base=3,
        battery=Battery(evaluations=[EvaluationRequest(name=example.PROBE), attack], allow_incomplete=True),
    )
    audit = client.audit(spec, timeout=200)
    assert audit.state == AUDIT_STATE_SUCCEEDED, audit.error_message
    results = {result.name: result for result in audit.verdict.evaluations}
    assert results.keys() == {example.PROBE, example.ATTACK}
    assert all(result.subject.cases == 4 for result in results.values())
    assert results[example.PROBE].reference.hits >= 3
    assert all(result.control.hits == 0 for result in results.values())
    manifest = client.report_message(audit.id).content.manifest
    assert example.JUDGE in manifest.judge_digests


def test_a_broken_package_says_which_it_is_and_costs_nothing_else(client: Client) -> None:
    battery = Battery(evaluations=[EvaluationRequest(name=example.BROKEN)], allow_incomplete=True)
    with pytest.raises(UneraseError) as caught:
        client.create_audit(AuditSpec(subject="testbed/uce", concept="hourglass", battery=battery))
    assert caught.value.reason == "EVALUATION_NOT_FOUND"
    (violation,) = caught.value.violations
    assert violation.field == "spec.battery.evaluations[0].name"
    assert violation.description == (
        "there is no evaluation 'broken-probe'; the entry point 'broken-probe' of unerase-broken 0.3 cannot be used: "
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    )
