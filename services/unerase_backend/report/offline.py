"""Verdicts and comparisons from exported observations, without a running backend, pictures or models.

The command finds `conclude_file` and `compare_files` by their entry points, so that the client does not import the
backend.
"""

from pathlib import Path

from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Audit, ReportContent, Tolerances
from unerase.v1.comparisons_pb2 import AuditComparison
from unerase_backend.comparison import Recorded, compare_audits
from unerase_backend.report.parquet import ExportedAudit, read_parquet
from unerase_backend.verdict import conclude
from unerase_backend.verdict.decision import tolerance_problem
from unerase_backend.verdict.roles import recorded_problem


def conclude_file(file: Path, tolerances: Tolerances) -> Audit:
    """Return the audit of an exported file with its verdict, at the audit's tolerances or at other `tolerances`.

    Raises:
        ValueError: the file does not hold exported observations, its models or judges are the same, or a tolerance is
            out of its bounds.
        OSError: the file cannot be read.
    """
    return conclude_exported(_read(file), tolerances)


def compare_files(first: Path, second: Path) -> AuditComparison:
    """Return the comparison of two exported audits, the first being the earlier one; errors as in `conclude_file`."""
    return compare_audits(_recorded(first), _recorded(second))


def _recorded(file: Path) -> Recorded:
    audit = _read(file)
    try:
        verdict = conclude_exported(audit, Tolerances()).verdict
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    content = ReportContent(verdict=verdict, descriptions=audit.descriptions)
    content.MergeFrom(audit.content)
    return Recorded(audit.audit_id, content, audit.observations)


def _read(file: Path) -> ExportedAudit:
    try:
        return read_parquet(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def conclude_exported(audit: ExportedAudit, tolerances: Tolerances) -> Audit:
    """Return the audit that a file holds with its verdict; errors as in `conclude_file`."""
    for field, value in tolerances.ListFields():
        if problem := tolerance_problem(field.name, value):
            raise ValueError(f"{field.name}: {problem}")
    spec = audit.content.spec
    if problem := recorded_problem(spec, audit.content.concept, audit.content.manifest):
        raise ValueError(f"{problem}: this audit has no valid verdict; run it again with other models or judges")
    if tolerances.HasField("excess"):
        # As in a request: an excess that is given holds for one draw as well, unless that has its own.
        spec.tolerances.ClearField("excess_of_one_draw")
    spec.tolerances.MergeFrom(tolerances)
    verdict = conclude(audit.observations, audit.descriptions, spec.battery.evaluations, spec)
    for result in verdict.evaluations:
        # The calibration that the audit quoted, because this installation may have a different one.
        if result.name in audit.calibrations:
            result.calibration.CopyFrom(audit.calibrations[result.name])
    return Audit(id=audit.audit_id, spec=spec, state=AUDIT_STATE_SUCCEEDED, verdict=verdict, notes=audit.content.notes)
