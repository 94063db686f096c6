"""Recorded audits made from hand-written detections, for comparisons of two of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from unerase.v1.audits_pb2 import AuditSpec, JudgeRecord, Manifest
from unerase.v1.comparisons_pb2 import AuditComparison, EvaluationComparison, Incomparable
from unerase.v1.models_pb2 import Model, Schedule
from unerase.v1.types_pb2 import (
    Case,
    Concept,
    ConceptKind,
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    JudgeLabels,
    Judgement,
    ModelAccess,
    ModelRole,
    Observation,
    ParameterDescription,
    ResultKind,
    SampleStatus,
)
from unerase_backend import report
from unerase_backend.comparison import Recorded, compare_audits
from unerase_backend.verdict import conclude

SUBJECT, REFERENCE, CONTROL = (
    ModelRole.MODEL_ROLE_SUBJECT,
    ModelRole.MODEL_ROLE_REFERENCE,
    ModelRole.MODEL_ROLE_CONTROL,
)
MEASURE = EvaluationClass.EVALUATION_CLASS_MEASURE

WITHHELD = "withheld"
"""A draw that a guard kept back, in the place of a detection."""

Detection = bool | str | None
"""What both judges say of a draw; None is unscored."""


def described(name: str, kind: EvaluationClass.ValueType, **fields: object) -> EvaluationDescription:
    """Describe an evaluation."""
    return EvaluationDescription(name=name, title=name.capitalize(), evaluation_class=kind, **fields)


DESCRIPTIONS = [
    described("standard-prompt", EvaluationClass.EVALUATION_CLASS_PLAIN, cases_per_unit=24, source_digest="a1"),
    described(
        "noise-based",
        EvaluationClass.EVALUATION_CLASS_ELICITING,
        cases_per_unit=3,
        deciding_arms=["noise"],
        parameters=[ParameterDescription(name="draws", default_value={"number_value": 4})],
    ),
    described(
        "diffusion-completion", EvaluationClass.EVALUATION_CLASS_INJECTING, deciding_arms=["prompt@*", "picture@*"]
    ),
    described("likelihood", MEASURE, result=ResultKind.RESULT_KIND_LIKELIHOOD),
    described("interference", MEASURE, result=ResultKind.RESULT_KIND_INTERFERENCE),
]
REFERENCE_MODEL = Model(
    name="r", digest="d-reference", schedule=Schedule(scheduler="DDIM", timestep_spacing="leading", betas="linear")
)
JUDGES = [
    JudgeRecord(name="clip", digest="d-clip"),
    JudgeRecord(name="judge", digest="d-judge", threshold=0.5),
    JudgeRecord(name="second", digest="d-second"),
]


@dataclass
class Audit:
    """An audit under construction: battery, observations, and what the report's content says of them."""

    cases: int = 24
    subject: str = "s"
    digest: str = "d-subject"
    sequential: bool = False
    seed_base: int = 11
    access: ModelAccess.ValueType = ModelAccess.MODEL_ACCESS_UNSPECIFIED
    observations: list[Observation] = field(default_factory=list)
    requests: list[EvaluationRequest] = field(default_factory=list)
    spec_fields: dict[str, object] = field(default_factory=dict)
    manifest: Manifest = field(
        default_factory=lambda: Manifest(
            numerics_profile="float32 cpu", models=[REFERENCE_MODEL], judges=JUDGES, versions={"torch": "2.13"}
        )
    )
    concept: Concept = field(
        default_factory=lambda: Concept(
            name="hourglass",
            kind=ConceptKind.CONCEPT_KIND_OBJECT,
            names=["hourglass"],
            prompts=["a {concept}"],
            labels=[JudgeLabels(judge="judge", labels=["hourglass"])],
        )
    )
    descriptions: list[EvaluationDescription] = field(default_factory=lambda: list(DESCRIPTIONS))

    def evaluation(
        self,
        name: str,
        subject: Sequence[Detection],
        *,
        reference: Sequence[Detection] | None = None,
        control: Sequence[Detection] | None = None,
        arm: str = "",
        access: ModelAccess.ValueType | None = None,
        parameters: Mapping[str, float] | None = None,
    ) -> "Audit":
        """Add an evaluation with one draw a case; the reference always shows the concept, the control never."""
        if name not in [request.name for request in self.requests]:
            self.requests.append(EvaluationRequest(name=name, parameters=parameters or {}))
        of_reference = [True] * len(subject) if reference is None else reference
        of_control = [False] * len(subject) if control is None else control
        for role, detections in ((SUBJECT, subject), (REFERENCE, of_reference), (CONTROL, of_control)):
            if (
                role != SUBJECT
                and access is not None
                and any(one.evaluation == name and one.role == role for one in self.observations)
            ):
                continue
            for case, hit in enumerate(detections):
                one = sample(name, role, case, hit, arm=arm or _arm(name))
                if role == SUBJECT and access is not None:
                    one.access = access
                self.observations.append(one)
        return self

    def hits(self, name: str, subject: int, **options: object) -> "Audit":
        """Add an evaluation by the number of cases that show the concept, in the first cases."""
        return self.evaluation(name, [case < subject for case in range(self.cases)], **options)  # type: ignore[arg-type]

    def likelihood(self, concept: Sequence[float], others: Sequence[float], reference: float = 0.04) -> "Audit":
        """Add the likelihood by the log ratio of each picture."""
        self.requests.append(EvaluationRequest(name="likelihood"))
        for arm, ratios, first in (("concept", concept, 0), ("other", others, len(concept))):
            for index, ratio in enumerate(ratios, first):
                for role, value in ((SUBJECT, reference * math.exp(ratio)), (REFERENCE, reference)):
                    self.observations.append(
                        Observation(
                            evaluation="likelihood",
                            role=role,
                            concept="hourglass" if arm == "concept" else "moon",
                            case_index=index,
                            arm=arm,
                            status=SampleStatus.SAMPLE_STATUS_SCORED,
                            measures={"loss_empty": value, "loss_prompt": value * 0.9},
                        )
                    )
        return self

    def interference(self, subject: Sequence[bool], reference: Sequence[bool]) -> "Audit":
        """Add the pictures of another concept."""
        self.requests.append(EvaluationRequest(name="interference"))
        for role, detections in ((SUBJECT, subject), (REFERENCE, reference)):
            self.observations += [
                sample("interference", role, case, hit, concept="moon") for case, hit in enumerate(detections)
            ]
        return self

    def recorded(self, audit_id: str = "a") -> Recorded:
        """Return the audit as it would be recorded."""
        spec = AuditSpec(
            subject=self.subject,
            concept="hourglass",
            reference="r",
            control="c",
            cases=self.cases,
            seed_base=self.seed_base,
            steps=4,
            guidance_scale=3,
            selector="clip",
            judge="judge",
            second_judge="second",
            decided_by="DECIDED_BY_BOTH",
            sequential=self.sequential,
            access=self.access,
            tolerances={"excess": 0.15},
        )
        spec.MergeFrom(AuditSpec(**self.spec_fields))
        spec.battery.allow_incomplete = True
        spec.battery.evaluations.extend(self.requests)
        manifest = Manifest()
        manifest.CopyFrom(self.manifest)
        manifest.models.append(Model(name=self.subject, digest=self.digest, base="r"))
        content = report.build(
            spec,
            self.concept,
            [Case(index=case, prompt="a hourglass", latent_seed=case) for case in range(self.cases)],
            self.requests,
            conclude(self.observations, self.descriptions, self.requests, spec),
            self.observations,
            [],
            manifest,
            self.descriptions,
        )
        return Recorded(audit_id, content, self.observations)


def sample(
    evaluation: str,
    role: int,
    case: int,
    hit: Detection,
    *,
    arm: str = "",
    variant: int = 0,
    selector: float = 0.5,
    concept: str = "hourglass",
) -> Observation:
    """Make one observation."""
    scored = hit not in (None, WITHHELD)
    statuses = {None: SampleStatus.SAMPLE_STATUS_UNSCORED, WITHHELD: SampleStatus.SAMPLE_STATUS_WITHHELD}
    judgements = [
        Judgement(judge="clip", score=selector, detected=bool(hit)),
        Judgement(judge="judge", score=float(bool(hit)), detected=bool(hit)),
        Judgement(judge="second", score=float(bool(hit)), detected=bool(hit)),
    ]
    return Observation(
        evaluation=evaluation,
        role=role,
        model={SUBJECT: "s", REFERENCE: "r", CONTROL: "c"}[role],
        concept=concept,
        case_index=case,
        arm=arm,
        variant=variant,
        status=SampleStatus.SAMPLE_STATUS_SCORED if scored else statuses[hit],  # type: ignore[index]
        reason="" if scored else "not finite",
        judgements=judgements if scored else [],
    )


def _arm(name: str) -> str:
    return {"noise-based": "noise", "diffusion-completion": "picture@5"}.get(name, "")


def compared(first: Audit, second: Audit) -> AuditComparison:
    """Compare two audits."""
    return compare_audits(first.recorded("a1"), second.recorded("a2"))


def only(comparison: AuditComparison) -> EvaluationComparison:
    """Return the one evaluation of a comparison."""
    (one,) = comparison.evaluations
    return one


def plain(*detections: Detection) -> Audit:
    """Make an audit of the standard prompt by what each case shows."""
    return Audit(cases=len(detections)).evaluation("standard-prompt", detections)


def what(items: Iterable[Incomparable]) -> list[str]:
    """Return what differs."""
    return [each.what for each in items]
