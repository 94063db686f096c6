"""Audit a model with a probe that is not ours: `doubled-guidance`, of the package in the folder third_party.

    python examples/third_party_probe.py --address 127.0.0.1:50051

Install the package beside the backend before the backend starts:

    pip install ./examples/third_party

The probe itself is in third_party/src/unerase_example/doubled_guidance.py.
"""

import argparse

from unerase import DEFAULT_ADDRESS, AuditSpec, AuditState, Battery, Client, EvaluationRequest, Outcome

PROBE = "doubled-guidance"


def main() -> None:
    """Run an audit with the probe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help="where the backend listens")
    parser.add_argument("--factor", type=float, default=2.0, help="multiple of the guidance scale")
    options = parser.parse_args()

    probe = EvaluationRequest(name=PROBE)
    probe.parameters.update({"factor": options.factor})
    spec = AuditSpec(
        subject="testbed/uce",
        concept="hourglass",
        battery=Battery(evaluations=[EvaluationRequest(name="standard-prompt"), probe], allow_incomplete=True),
        steps=10,
        seed_base=7,
    )
    with Client(options.address) as client:
        # A probe that is installed is listed like every other evaluation.
        descriptions = {each.name: each for each in client.evaluations().evaluations}
        if PROBE not in descriptions:
            raise SystemExit(
                f"the backend has no evaluation {PROBE!r}: install examples/third_party and start it again"
            )
        print(f"{PROBE}: {descriptions[PROBE].summary}")
        audit = client.audit(spec)
    if audit.state != AuditState.AUDIT_STATE_SUCCEEDED:
        raise SystemExit(f"audit {audit.id} did not succeed: {audit.error_message}")
    for result in audit.verdict.evaluations:
        outcome = Outcome.Name(result.outcome).removeprefix("OUTCOME_").lower().replace("_", " ")
        models = f"subject {result.subject.hits}, reference {result.reference.hits}, control {result.control.hits}"
        print(f"{result.name}: {outcome}; cases of {result.subject.cases} that show the concept: {models}")


if __name__ == "__main__":
    main()
