"""An audit as a record of Every Eval Ever, schema 0.3.0: aggregate results, each with its uncertainty.

A record has the conclusion, each evaluation's detection rate and excess, and destruction, general damage and the loss
on other concepts. What has no figure (an evaluation of which every case is unscored) has no result, and is named in
`source_metadata`. Nothing of that project's package is needed here; `make integrations` validates with it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from unerase._counting import count_of
from unerase.integrations._reports import LEVELS, conclusion_word, outcome_word, subject_of, verdicts_of
from unerase.v1.audits_pb2 import Report
from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import Estimate, EvaluationResult, Interval, Rate, Verdict

SCHEMA_VERSION = "0.3.0"
RELATIONSHIPS = ("first_party", "third_party", "collaborative", "other")
AVAILABILITY = ("open_weights", "closed_weights", "unknown")
WILSON = "Wilson score interval, over cases"
ONE_SIDED = "two one-sided 95 % bounds"


@dataclass(frozen=True)
class Source:
    """Who audited, and what a report does not say of the model."""

    organisation: str
    """The organisation that provides the record."""
    relationship: str = "third_party"
    """Of the evaluator to the model: one of `RELATIONSHIPS`."""
    availability: str = "unknown"
    """Of the model's weights: one of `AVAILABILITY`."""
    model_id: str = ""
    """The model's id as others know it, as in "organisation/model"; empty means its name in the catalogue."""

    def __post_init__(self) -> None:
        for value, allowed in ((self.relationship, RELATIONSHIPS), (self.availability, AVAILABILITY)):
            if value not in allowed:
                raise ValueError(f"{value!r} must be one of {', '.join(allowed)}")
        if not self.organisation.strip():
            raise ValueError("an organisation must be named")


def record(report: Report, source: Source, retrieved: datetime) -> dict[str, Any]:
    """Return the record of one audit; `retrieved` is the time at which the record is made."""
    content, model = report.content, subject_of(report)
    model_id = source.model_id or model.name
    seconds = str(int(retrieved.timestamp()))
    results: list[dict[str, Any]] = []
    without: list[str] = []
    for about, verdict in verdicts_of(report):
        prefix = f"{about}: " if about else ""
        for result in _results(verdict):
            if result.figure is None or not math.isfinite(result.figure):
                without.append(prefix + result.name)
            else:
                results.append(result.written(report, prefix))
    details = {
        "method": model.method,
        "base": model.base,
        "digest": model.digest,
        "erased": ", ".join(model.erased),
        "guards": ", ".join(guard.kind for guard in model.guards),
        "deployment_type": "self_deployed",
        "model_availability": source.availability,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"unerase.{content.spec.concept}/{model_id}/{seconds}",
        "evaluation_timestamp": _time(report),
        "retrieved_timestamp": seconds,
        "source_metadata": {
            "source_name": f"unerase audit {report.audit_id}",
            "source_type": "evaluation_run",
            "source_organization_name": source.organisation,
            "evaluator_relationship": source.relationship,
            "additional_details": _said({"without_score": "; ".join(without), "notes": " ".join(content.notes)}),
        },
        "eval_library": {
            "name": "unerase",
            "version": version("unerase"),
            "additional_details": _said(
                {
                    "report_schema_version": report.schema_version,
                    "comparability_digest": content.comparability_digest,
                    "observations_digest": content.observations_digest,
                    "numerics_profile": content.manifest.numerics_profile,
                }
            ),
        },
        "model_info": {
            "name": model.name,
            "id": model_id,
            "inference_engine": _said(
                {"name": "diffusers", "version": content.manifest.versions.get("diffusers", "unknown")}
            ),
            "additional_details": _said(details),
        },
        "evaluation_results": results,
    }


@dataclass(frozen=True)
class _Result:
    """One figure with its interval; none if there is nothing that it was taken of."""

    name: str
    figure: float | None
    metric: dict[str, Any]
    details: Mapping[str, str]
    interval: dict[str, Any] | None = None
    samples: int | None = None

    def written(self, report: Report, prefix: str) -> dict[str, Any]:
        """Return it as the record has it."""
        content = report.content
        score: dict[str, Any] = {"score": self.figure, "details": _said(self.details)}
        uncertainty: dict[str, Any] = {}
        if self.interval is not None:
            uncertainty["confidence_interval"] = self.interval
        if self.samples is not None:
            uncertainty["num_samples"] = self.samples
        if uncertainty:
            score["uncertainty"] = uncertainty
        spec = content.spec
        return {
            "evaluation_result_id": f"{report.audit_id}:{prefix}{self.name}",
            "evaluation_name": prefix + self.name,
            "source_data": {
                "dataset_name": f"{spec.concept}: {_prompts(spec.cases or len(content.cases))}",
                "source_type": "other",
                "additional_details": _said(
                    {
                        "concept": spec.concept,
                        "prompts_file": spec.fixed_prompts_source.name,
                        "prompts_file_sha256": spec.fixed_prompts_source.digest,
                        "seed_base": str(spec.seed_base) if spec.HasField("seed_base") else "",
                    }
                ),
            },
            "evaluation_timestamp": _time(report),
            "metric_config": self.metric,
            "score_details": score,
            "generation_config": {
                "additional_details": _said(
                    {
                        "steps": str(spec.steps or ""),
                        "guidance_scale": f"{spec.guidance_scale:g}",
                        # Models of both kinds are never in one audit.
                        "sampler": "Euler" if any(each.schedule.flow for each in content.manifest.models) else "DDIM",
                    }
                )
            },
        }


def _results(verdict: Verdict) -> Iterator[_Result]:
    yield _conclusion(verdict)
    for result in verdict.evaluations:
        yield _detection(result)
        yield _excess(result)
    if verdict.HasField("likelihood"):
        found = verdict.likelihood
        size = {"concept_pictures": str(found.concept_pictures), "other_pictures": str(found.other_pictures)}
        yield _estimate("destruction", found.destruction, size, lower_is_better=False)
        yield _estimate("general damage", found.general_damage, size, lower_is_better=True)
    if verdict.HasField("interference"):
        lost = verdict.interference
        concepts = {"concepts": ", ".join(each.concept for each in lost.concepts)}
        yield _estimate("interference", lost.loss, concepts, lower_is_better=True, reach=1.0)


def _conclusion(verdict: Verdict) -> _Result:
    known = verdict.conclusion in LEVELS
    metric = {
        "evaluation_description": "What the audit concludes of the model.",
        "metric_id": "unerase.conclusion",
        "metric_name": "Conclusion",
        "metric_kind": "conclusion",
        "lower_is_better": False,
        "score_type": "levels",
        "level_names": ["not erased", "avoided", "removed"],
        "has_unknown_level": True,
    }
    details = {
        "conclusion": conclusion_word(verdict),
        "statement": verdict.statement,
        "damaged": str(verdict.damaged).lower(),
        "missing": ", ".join(verdict.missing),
        "not_applicable": "; ".join(f"{one.name}: {one.why.reason}" for one in verdict.not_applicable),
    }
    return _Result("conclusion", float(LEVELS.index(verdict.conclusion)) if known else -1.0, metric, details)


def _detection(result: EvaluationResult) -> _Result:
    rate = result.subject
    metric = {
        "evaluation_description": f"{result.title}: the share of cases in which the subject shows the concept.",
        "metric_id": "unerase.detection_rate",
        "metric_name": "Detection rate",
        "metric_kind": "detection_rate",
        "metric_unit": "proportion",
        "metric_parameters": {"budget": result.budget},
        "lower_is_better": True,
        "score_type": "continuous",
        "min_score": 0.0,
        "max_score": 1.0,
    }
    details = {
        "outcome": outcome_word(result),
        "reason": result.reason,
        "hits": str(rate.hits),
        "unscored": str(rate.unscored),
        "excluded": str(rate.excluded),
        "withheld": str(rate.withheld),
        "reference": _share(result.reference),
        "control": _share(result.control),
    }
    figure = rate.hits / rate.cases if rate.cases else None
    return _Result(
        f"{result.name}: detection", figure, metric, details, _between(rate.wilson, 0.95, WILSON), rate.cases
    )


def _excess(result: EvaluationResult) -> _Result:
    found = result.excess
    metric = {
        "evaluation_description": f"{result.title}: the subject's detection rate over its control's, in pairs.",
        "metric_id": "unerase.excess",
        "metric_name": "Excess over the control",
        "metric_kind": "rate_difference",
        "metric_unit": "proportion",
        "metric_parameters": {"budget": result.budget},
        "lower_is_better": True,
        "score_type": "continuous",
        "min_score": -1.0,
        "max_score": 1.0,
    }
    details = {
        "control": ControlKind.Name(result.control_kind).removeprefix("CONTROL_KIND_").lower(),
        "control_statement": result.control_statement,
        "p_mcnemar_one_sided": f"{found.p:.6g}",
        "p_holm": f"{found.p_holm:.6g}",
    }
    has = result.HasField("excess") and result.subject.cases > 0
    # Each bound holds with 95 %, so both together with 90 %.
    interval = _between(found.bounds, 0.90, ONE_SIDED)
    return _Result(
        f"{result.name}: excess", found.value if has else None, metric, details, interval, result.subject.cases
    )


def _estimate(
    name: str, found: Estimate, details: Mapping[str, str], *, lower_is_better: bool, reach: float | None = None
) -> _Result:
    metric = {
        "metric_id": f"unerase.{name.replace(' ', '_')}",
        "metric_name": name.capitalize(),
        "metric_kind": name.replace(" ", "_"),
        "metric_unit": "proportion" if reach else "log ratio",
        "lower_is_better": lower_is_better,
        "score_type": "continuous",
        "min_score": -reach if reach else "-Infinity",
        "max_score": reach or "Infinity",
    }
    interval = _between(found.interval, 0.95, "two-sided, over pictures or concepts")
    return _Result(name, found.value, metric, details, interval)


def _prompts(cases: int) -> str:
    return f"{count_of(cases, 'prompt')} with {'its seed' if cases == 1 else 'their seeds'}"


def _between(interval: Interval, level: float, method: str) -> dict[str, Any] | None:
    if not (math.isfinite(interval.lower) and math.isfinite(interval.upper)):
        return None
    return {"lower": interval.lower, "upper": interval.upper, "confidence_level": level, "method": method}


def _share(rate: Rate) -> str:
    return f"{rate.hits} of {rate.cases}" if rate.cases else ""


def _said(details: Mapping[str, str]) -> dict[str, str]:
    """Return the details that say something."""
    return {key: value for key, value in details.items() if value}


def _time(report: Report) -> str:
    return report.end_time.ToDatetime(tzinfo=UTC).isoformat()
