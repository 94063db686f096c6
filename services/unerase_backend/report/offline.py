"""The verdict of an audit from its exported observations alone: no backend, no pictures, no models.

`unerase verdict` finds `conclude_file` by its entry point, so that the client imports nothing of the backend.
"""

from pathlib import Path

from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Audit, Tolerances
from unerase_backend.report.parquet import ExportedAudit, read_parquet
from unerase_backend.verdict import conclude
from unerase_backend.verdict.decision import tolerance_problem
from unerase_backend.verdict.roles import recorded_problem


def conclude_file(file: Path, tolerances: Tolerances) -> Audit:
    """Return the audit of an exported file with its verdict, as it was or at other `tolerances`.

    Raises:
        ValueError: the file holds no such observations, its subject, reference, control and judges are not different
            ones, or a tolerance is out of its bounds.
        OSError: it cannot be read.
    """
    try:
        record = read_parquet(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return conclude_record(record, tolerances)


def conclude_record(record: ExportedAudit, tolerances: Tolerances) -> Audit:
    """Return the audit that a file holds with its verdict; errors as in `conclude_file`."""
    for field, value in tolerances.ListFields():
        if problem := tolerance_problem(field.name, value):
            raise ValueError(f"{field.name}: {problem}")
    spec = record.content.spec
    if problem := recorded_problem(spec, record.content.concept, record.content.manifest):
        raise ValueError(f"{problem}: no verdict follows from this audit; run it again with others")
    spec.tolerances.MergeFrom(tolerances)
    verdict = conclude(record.observations, record.descriptions, spec.battery.evaluations, spec)
    for result in verdict.evaluations:
        # As it was quoted: this installation's own calibration may be another.
        if result.name in record.calibrations:
            result.calibration.CopyFrom(record.calibrations[result.name])
    return Audit(id=record.audit_id, spec=spec, state=AUDIT_STATE_SUCCEEDED, verdict=verdict)
