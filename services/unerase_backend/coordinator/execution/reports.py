"""Writes the forms of a report to the artefact store: when an audit ends, and again if a form was lost."""

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
    """Render the report of a tenant's audit in each of its forms and store them; `end` is in nanoseconds since 1970.

    Raises:
        NotFoundError, DataLossError: a picture that the page shows is missing or damaged.
        ExhaustedError: the artefact store is full.
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
        comparability=content.comparability_digest,
        subject=next((model.digest for model in content.manifest.models if model.name == content.spec.subject), ""),
    )


def write_again(
    store: ArtifactStore,
    evidence: Evidence,
    reports: Reports,
    descriptions: Iterable[EvaluationDescription],
    tenant: str,
) -> Reports:
    """Render the forms of a report again from its content.

    Raises:
        DataLossError: the content or a picture is lost as well.
    """
    try:
        content = ReportContent.FromString(store.get(reports.content))
        end = evidence.audit.end_time.ToNanoseconds()
        return write_reports(store, evidence.audit, end, content, descriptions, evidence.observations, tenant)
    except (NotFoundError, DataLossError):
        raise DataLossError("the report is lost, and so is the data to make it again; run the audit again") from None
