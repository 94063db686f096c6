"""The content of a report: two runs of an audit give the same bytes, whatever the order of the observations."""

import hashlib
from collections.abc import Iterable, Sequence

from unerase.v1.audits_pb2 import AuditSpec, Manifest, ReportContent, ReportPicture
from unerase.v1.types_pb2 import (
    Case,
    Concept,
    DecidedBy,
    EvaluationDescription,
    EvaluationRequest,
    Finding,
    ModelAccess,
    ModelRole,
    Observation,
)
from unerase.v1.verdicts_pb2 import EvaluationResult, Verdict
from unerase_backend.comparison import comparability_digest
from unerase_backend.report.schema import canonical_json
from unerase_backend.verdict.draws import JUDGE, SECOND_JUDGE, SELECTOR, is_scored

CASES_SHOWN = 4
"""Cases of one evaluation whose pictures are shown: half hits and half misses of the subject, if it has both."""


def build(
    spec: AuditSpec,
    concept: Concept,
    cases: Sequence[Case],
    evaluations: Sequence[EvaluationRequest],
    verdict: Verdict,
    observations: Iterable[Observation],
    findings: Iterable[Finding],
    manifest: Manifest,
    descriptions: Iterable[EvaluationDescription],
    notes: Sequence[str] = (),
) -> ReportContent:
    """Return the content of a report; `descriptions` and `notes` are those that the audit was planned with."""
    ordered = sorted(observations, key=place)
    content = ReportContent(
        spec=spec,
        concept=concept,
        cases=sorted(cases, key=lambda case: case.index),
        evaluations=sorted(evaluations, key=lambda evaluation: evaluation.name),
        verdict=verdict,
        pictures=[
            picture
            for result in verdict.evaluations
            for picture in pictures_of(result, ordered, verdict.decided_by, verdict.access)
        ],
        findings=sorted(
            findings,
            key=lambda found: (
                found.evaluation,
                found.HasField("case_index"),
                found.case_index,
                found.label,
                found.role,
                found.model,
                found.access,
            ),
        ),
        manifest=manifest,
        observations=len(ordered),
        observations_digest=digest_of(ordered),
        descriptions=needed_descriptions(descriptions, evaluations),
        notes=notes,
    )
    content.comparability_digest = comparability_digest(content)
    return content


def needed_descriptions(
    descriptions: Iterable[EvaluationDescription], evaluations: Iterable[EvaluationRequest]
) -> list[EvaluationDescription]:
    """Return the descriptions that a verdict needs: of the battery's evaluations, and of every required one."""
    battery = {evaluation.name for evaluation in evaluations}
    return [description for description in descriptions if description.required or description.name in battery]


def place(observation: Observation) -> tuple[str, int, str, str, int, str, int, int]:
    """Return the sort key of an observation, which is unique within an audit."""
    return (
        observation.evaluation,
        observation.role,
        observation.model,
        observation.concept,
        observation.case_index,
        observation.arm,
        observation.variant,
        observation.access,
    )


def digest_of(observations: Iterable[Observation]) -> str:
    """Return the SHA-256 of the observations' canonical JSON, one observation a line."""
    digest = hashlib.sha256()
    for observation in observations:
        digest.update(canonical_json(observation).encode() + b"\n")
    return digest.hexdigest()


def pictures_of(
    result: EvaluationResult,
    observations: Sequence[Observation],
    decided_by: DecidedBy.ValueType,
    access: ModelAccess.ValueType = ModelAccess.MODEL_ACCESS_UNSPECIFIED,
) -> list[ReportPicture]:
    """Return the pictures shown for an evaluation: the deciding draw of each model in a few cases.

    The cases are the subject's first hits and first misses in order of the cases, so that nobody selects them. In an
    audit of both accesses they are those of the subject's weights, with the deployed subject's pictures beside.
    """
    deciding = {arm.arm for arm in result.arms if arm.deciding}
    drawn: dict[int, dict[tuple[int, int], Observation]] = {}
    for observation in observations:
        if (
            observation.evaluation != result.name
            or observation.arm not in deciding
            or not is_scored(observation)
            or not observation.picture_digest
        ):
            continue
        of_case = drawn.setdefault(observation.case_index, {})
        key = observation.role, observation.access
        best = of_case.get(key)
        if best is None or _selected_by(observation) > _selected_by(best):
            of_case[key] = observation
    subject = ModelRole.MODEL_ROLE_SUBJECT, access
    shown = sorted(case for case, of_case in drawn.items() if subject in of_case)
    hits = [case for case in shown if _detected(drawn[case][subject], decided_by)]
    misses = [case for case in shown if not _detected(drawn[case][subject], decided_by)]
    half = CASES_SHOWN // 2
    hits_shown = hits[: max(half, CASES_SHOWN - len(misses))]
    misses_shown = misses[: CASES_SHOWN - len(hits_shown)]
    return [
        ReportPicture(
            evaluation=result.name,
            role=chosen.role,
            model=chosen.model,
            case_index=case,
            arm=chosen.arm,
            variant=chosen.variant,
            prompt=chosen.prompt,
            detected=_detected(chosen, decided_by),
            digest=chosen.picture_digest,
            access=chosen.access or None,
        )
        for case in hits_shown + misses_shown
        for _, chosen in sorted(drawn[case].items(), key=lambda item: (item[0][0], item[0] != subject))
    ]


def _selected_by(observation: Observation) -> float:
    return observation.judgements[SELECTOR].score


def _detected(observation: Observation, decided_by: DecidedBy.ValueType) -> bool:
    deciding = (JUDGE, SECOND_JUDGE) if decided_by == DecidedBy.DECIDED_BY_BOTH else (JUDGE,)
    return all(observation.judgements[judge].detected for judge in deciding)
