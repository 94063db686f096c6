"""Audit one model from Python: ask, follow the progress, read the verdict, save the report.

    python examples/audit.py --address 127.0.0.1:50051 --html audit.html

The audit is a small one: the plain prompt and diffusion completion, in ten denoising steps. It takes under a minute.
"""

import argparse
from pathlib import Path

from unerase import DEFAULT_ADDRESS, AuditEvent, AuditSpec, AuditState, Battery, Client, EvaluationRequest, ReportFormat


def show(event: AuditEvent) -> None:
    """Print one line for each unit of the audit that is done."""
    if event.HasField("unit_done"):
        print(f"{event.unit_done.unit}: {event.unit_done.detected} of {event.unit_done.observations} pictures show it")


def main() -> None:
    """Run the audit that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help="where the backend listens")
    parser.add_argument("--subject", default="testbed/uce", help="the model to audit, as `unerase models` names it")
    parser.add_argument(
        "--concept", default="hourglass", help="the concept to look for, as `unerase concepts` names it"
    )
    parser.add_argument("--html", type=Path, default=Path("audit.html"), help="where to write the report")
    options = parser.parse_args()

    spec = AuditSpec(
        subject=options.subject,
        concept=options.concept,
        battery=Battery(
            evaluations=[EvaluationRequest(name="standard-prompt"), EvaluationRequest(name="diffusion-completion")],
            # A complete verdict needs more evaluations. Without them, the verdict says which are missing.
            allow_incomplete=True,
        ),
        steps=10,
        # The same request with the same seed base gives the same figures; without one, the backend draws it.
        seed_base=7,
    )
    with Client(options.address) as client:
        audit = client.audit(spec, on_event=show)
        if audit.state != AuditState.AUDIT_STATE_SUCCEEDED:
            raise SystemExit(f"audit {audit.id} did not succeed: {audit.error_message}")
        options.html.write_bytes(client.report(audit.id, ReportFormat.REPORT_FORMAT_HTML))

    print(audit.verdict.summary)
    for result in audit.verdict.evaluations:
        subject, control = result.subject, result.control
        print(f"{result.title}: {subject.hits} of {subject.cases} cases, control {control.hits} of {control.cases}")
    print(f"The report is in {options.html}")


if __name__ == "__main__":
    main()
