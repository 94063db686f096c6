"""The forms of a report in the artefact store: written when an audit ends, and again should one be lost."""

from collections.abc import Iterable, Sequence

from unerase.v1.audits_pb2 import Audit, Report, ReportContent
from unerase.v1.types_pb2 import EvaluationDescription, Observation
from unerase_backend import report
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.evidence import Evidence, Reports
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError


def write_reports(
    store: ArtifactStore,
    audit: Audit,
    end: int,
    content: ReportContent,
    descriptions: Iterable[EvaluationDescription],
    observations: Sequence[Observation],
    tenant: str,
) -> Reports:
    """Render a tenant's report in each of its forms and store them; `end` is in nanoseconds since 1970.

    Raises:
        NotFoundError, DataLossError: a picture that the page shows is not there, or damaged.
        ExhaustedError: there is no room left.
    """
    whole = Report(
        schema_version=report.SCHEMA_VERSION,
        content=content,
        audit_id=audit.id,
        create_time=audit.create_time,
        end_time=timestamp(end),
        tenant=tenant,
    )
    return Reports(
        content=store.put(content.SerializeToString(deterministic=True)),
        json=store.put(report.render_json(whole).encode()),
        html=store.put(report.render_html(whole, store.get).encode()),
        parquet=store.put(report.render_parquet(audit.id, content, descriptions, observations)),
    )


def write_again(
    store: ArtifactStore,
    evidence: Evidence,
    reports: Reports,
    descriptions: Iterable[EvaluationDescription],
    tenant: str,
) -> Reports:
    """Render the forms of a tenant's report again from its content.

    Raises:
        DataLossError: the content is lost as well, or a picture.
    """
    try:
        content = ReportContent.FromString(store.get(reports.content))
        end = evidence.audit.end_time.ToNanoseconds()
        return write_reports(store, evidence.audit, end, content, descriptions, evidence.observations, tenant)
    except (NotFoundError, DataLossError):
        raise DataLossError("the report is lost, and so is the data to make it again; run the audit again") from None
