"""The calibration of evaluations: how often each brings the concept back from models whose truth is known.

All audits run the same cases with the same seeds. As in any audit, the best of the first k deciding draws decides a
case:

    sensitivity at k = share of cases in which the concept comes back, over the models that certainly hold it
    specificity at k = share of cases in which it does not come back, over the models that never learned it

The reference holds the concept. So does a model in which only the text side was redirected. What a published eraser
left is not known beforehand, so such a model has a row of its own and counts in neither figure. All models run the same
cases, so the decisions on one case are a cluster. The intervals are Wilson's at the effective number of decisions
(`statistics.effective_sample`).
"""

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from numpy.typing import NDArray

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import DecidedBy, EvaluationClass, EvaluationDescription, Observation
from unerase.v1.verdicts_pb2 import Calibration, Interval, Rate, Verdict
from unerase_backend.verdict import statistics
from unerase_backend.verdict.access import DEPLOYED, OPEN_WEIGHTS, seen_under
from unerase_backend.verdict.draws import SUBJECT, Cases, who_decides
from unerase_backend.verdict.figures import figures_of
from unerase_backend.verdict.roles import known_never_learned

VERSION = "1.0"
REDIRECTED = "redirected"
"""The method of a model that differs from the reference only in the embeddings of the concept's words."""


class Truth(enum.Enum):
    """What is known about a model and the concept before the audit."""

    HOLDS = "holds"
    NEVER_LEARNED = "never learned"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, model: Model, spec: AuditSpec, words: Sequence[str] = ()) -> "Truth":
        """Return what is known about `model` and the request's concept, whose names are `words`."""
        if known_never_learned(model.never_learned, spec.concept, words):
            return cls.NEVER_LEARNED
        holds = model.name == spec.reference or (model.base == spec.reference and model.method == REDIRECTED)
        return cls.HOLDS if holds else cls.UNKNOWN


@dataclass(frozen=True)
class Trial:
    """One audit of one model."""

    spec: AuditSpec
    model: Model
    """The subject, with its digest."""
    descriptions: Sequence[EvaluationDescription]
    observations: Sequence[Observation]
    words: Sequence[str] = ()
    """The concept's names."""


def calibrate(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the calibration of every evaluation of the audits, in the form in which it is written to JSON.

    Raises:
        ValueError: the audits differ in more than their subject, two audits have the same subject, no subject certainly
            holds the concept, or no subject never learned it.
    """
    truths = {trial.spec.subject: Truth.of(trial.model, trial.spec, trial.words) for trial in trials}
    _check(trials, truths)
    spec = trials[0].spec
    described = {one.name: one for one in trials[0].descriptions}
    evaluations = []
    for request in spec.battery.evaluations:
        description = described[request.name]
        measure = description.evaluation_class == EvaluationClass.EVALUATION_CLASS_MEASURE
        if not measure and not request.HasField("not_applicable"):
            decided = {trial.spec.subject: _decided(trial, description) for trial in trials}
            evaluations.append(
                {
                    "name": request.name,
                    "title": description.title,
                    "parameters": json_format.MessageToDict(request.parameters),
                    "budgets": [
                        _at_budget({model: curve[place] for model, curve in decided.items()}, truths, place + 1)
                        for place in range(max(map(len, decided.values())))
                        if all(len(curve) > place for curve in decided.values())
                    ],
                }
            )
    return {
        "version": VERSION,
        "source": _source(trials, truths),
        "concept": spec.concept,
        "reference": spec.reference,
        "cases": spec.cases,
        "steps": spec.steps,
        "guidance_scale": spec.guidance_scale,
        "seed_base": str(spec.seed_base),
        "judges": [spec.selector, spec.judge, spec.second_judge],
        "decided_by": DecidedBy.Name(who_decides(spec)),
        "models": [
            {"name": trial.model.name, "truth": truths[trial.model.name].value, "digest": trial.model.digest}
            for trial in trials
        ],
        "evaluations": evaluations,
    }


class Calibrations:
    """The calibrations that audits may quote."""

    def __init__(self, calibrated: Mapping[str, Any] | None = None) -> None:
        """Read what `calibrate` returned; with None there are no calibrations.

        Raises:
            ValueError: the calibration has another major version.
        """
        calibrated = calibrated or {"version": VERSION, "evaluations": []}
        version = str(calibrated["version"])
        if version.partition(".")[0] != VERSION.partition(".")[0]:
            raise ValueError(f"the calibration has version {version}; this program reads {VERSION}")
        self._steps = calibrated.get("steps", 0)
        self._source = calibrated.get("source", "")
        # A calibration that does not say who decided is from when the judge alone did.
        self._decided_by = calibrated.get("decided_by", DecidedBy.Name(DecidedBy.DECIDED_BY_JUDGE))
        self._evaluations = {one["name"]: one for one in calibrated["evaluations"]}

    def of(self, name: str, parameters: Struct, steps: int, budget: int) -> Calibration | None:
        """Return the calibration of an evaluation; None unless it was calibrated at exactly these settings."""
        known = self._evaluations.get(name)
        if known is None or steps != self._steps or json_format.ParseDict(known["parameters"], Struct()) != parameters:
            return None
        # With these parameters the full budget is the last point. An audit with a smaller budget lost draws.
        points = [point for point in known["budgets"] if point["budget"] == budget]
        if not points or points[0] is not known["budgets"][-1]:
            return None
        return Calibration(
            sensitivity=json_format.ParseDict(points[0]["sensitivity"], Rate()),
            specificity=json_format.ParseDict(points[0]["specificity"], Rate()),
            budget=budget,
            steps=steps,
            source=self._source,
        )

    def quote(self, verdict: Verdict, spec: AuditSpec) -> None:
        """Add to a verdict the calibration of each of its evaluations that has one, if the same judges decided.

        Lists of prompts are not what was calibrated, nor are models as deployed, with guards.
        """
        if verdict.access == DEPLOYED or DecidedBy.Name(who_decides(spec)) != self._decided_by or spec.fixed_prompts:
            return
        parameters = {request.name: request.parameters for request in spec.battery.evaluations}
        for result in verdict.evaluations:
            known = self.of(result.name, parameters[result.name], spec.steps, result.budget)
            if known is not None:
                result.calibration.CopyFrom(known)


def _check(trials: Sequence[Trial], truths: Mapping[str, Truth]) -> None:
    if len(truths) < len(trials):
        raise ValueError("two audits have the same subject")
    for truth, missing in ((Truth.HOLDS, "holds the concept for certain"), (Truth.NEVER_LEARNED, "never learned it")):
        if truth not in truths.values():
            raise ValueError(f"there is no audit of a model that {missing}")
    for trial in trials:
        if trial.spec.access == DEPLOYED:
            raise ValueError(f"the audit of {trial.spec.subject} is of the model as deployed, and not of its weights")
        if trial.spec.sequential:
            raise ValueError(f"the audit of {trial.spec.subject} is sequential: what it left out is not known")
        if _shared(trial.spec) != _shared(trials[0].spec):
            raise ValueError(f"the audits of {trials[0].spec.subject} and {trial.spec.subject} differ in their request")


def _shared(spec: AuditSpec) -> AuditSpec:
    """Return the part of the request that all audits must share.

    The fields left out do not affect the decisions on the subject's own cases: it makes the same draws whatever its
    control is, and here all deciding arms count. Of an audit of both accesses that on the weights counts.
    """
    shared = AuditSpec()
    shared.CopyFrom(spec)
    for field in (
        "subject",
        "access",
        "control",
        "control_kind",
        "placebo",
        "placebos",
        "tolerances",
        "assume_control",
        "assume_reference",
        "own_schedules",
    ):
        shared.ClearField(field)
    return shared


def _decided(trial: Trial, description: EvaluationDescription) -> list[Cases]:
    """Return the subject's decided cases at each budget."""
    by_weights = seen_under(trial.observations, OPEN_WEIGHTS)
    observations = [one for one in by_weights if one.evaluation == description.name and one.role == SUBJECT]
    figures = figures_of(description, observations, trial.spec, cases=trial.spec.cases)
    draws = figures.draws[SUBJECT].of(figures.deciding)
    return [draws.best_of(budget) for budget in range(1, draws.budget + 1)]


def _at_budget(decided: Mapping[str, Cases], truths: Mapping[str, Truth], budget: int) -> dict[str, Any]:
    holding = [cases for model, cases in decided.items() if truths[model] is Truth.HOLDS]
    lacking = [cases for model, cases in decided.items() if truths[model] is Truth.NEVER_LEARNED]
    return {
        "budget": budget,
        "sensitivity": _plain(_pooled(holding, shown=True)),
        "specificity": _plain(_pooled(lacking, shown=False)),
        "models": {model: _plain(cases.rate()) for model, cases in decided.items()},
    }


def _pooled(models: Sequence[Cases], *, shown: bool) -> Rate:
    """Return the rate over several models of cases that show the concept, or that do not; a case is a cluster."""
    detected: NDArray[np.bool_] = np.stack([cases.detected for cases in models])
    scored = np.stack([cases.scored for cases in models])
    hits, draws = ((detected == shown) & scored).sum(axis=0), scored.sum(axis=0)
    sample = statistics.effective_sample(hits, draws)
    lower, upper = statistics.wilson(sample.hits, sample.size)
    return Rate(
        hits=int(hits.sum()),
        cases=int(draws.sum()),
        unscored=int(sum(cases.doubtful.sum() for cases in models)),
        wilson=Interval(lower=float(lower), upper=float(upper)),
    )


def _plain(rate: Rate) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(
        rate, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return plain


def _source(trials: Sequence[Trial], truths: Mapping[str, Truth]) -> str:
    by_truth = {
        truth: ", ".join(trial.spec.subject for trial in trials if truths[trial.spec.subject] is truth)
        for truth in Truth
    }
    # Only models of known truth enter the figures, so adding others does not change the version.
    known = "\n".join(sorted(trial.model.digest for trial in trials if truths[trial.spec.subject] is not Truth.UNKNOWN))
    version = hashlib.sha256(known.encode()).hexdigest()[:8]
    return (
        f"{trials[0].spec.concept}: held by {by_truth[Truth.HOLDS]}, never learned by {by_truth[Truth.NEVER_LEARNED]}; "
        f"these weights are {version}"
    )
