"""Audits written down by hand: observations as the rooms would have made them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    DecidedBy,
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    Judgement,
    ModelRole,
    NotApplicable,
    Observation,
    ResultKind,
    SampleStatus,
)
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.verdict import conclude

SUBJECT = ModelRole.MODEL_ROLE_SUBJECT
REFERENCE = ModelRole.MODEL_ROLE_REFERENCE
CONTROL = ModelRole.MODEL_ROLE_CONTROL

CLASSES = {
    "standard-prompt": EvaluationClass.EVALUATION_CLASS_PLAIN,
    "noise-based": EvaluationClass.EVALUATION_CLASS_ELICITING,
    "diffusion-completion": EvaluationClass.EVALUATION_CLASS_INJECTING,
    "textual-inversion": EvaluationClass.EVALUATION_CLASS_INJECTING,
    "unlearn-diff-atk": EvaluationClass.EVALUATION_CLASS_ELICITING,
    "interference": EvaluationClass.EVALUATION_CLASS_MEASURE,
    "likelihood": EvaluationClass.EVALUATION_CLASS_MEASURE,
    "judge-quality": EvaluationClass.EVALUATION_CLASS_MEASURE,
}
REQUIRED = (
    "standard-prompt",
    "noise-based",
    "diffusion-completion",
    "textual-inversion",
    "unlearn-diff-atk",
    "likelihood",
)
RESULTS = {
    "likelihood": ResultKind.RESULT_KIND_LIKELIHOOD,
    "interference": ResultKind.RESULT_KIND_INTERFERENCE,
    "judge-quality": ResultKind.RESULT_KIND_JUDGE_QUALITY,
}
DECIDING = {"noise-based": ["noise"], "diffusion-completion": ["prompt@*", "empty@*"]}


def describe(name: str) -> EvaluationDescription:
    """Describe an evaluation as its module would."""
    return EvaluationDescription(
        name=name,
        title=name,
        evaluation_class=CLASSES[name],
        deciding_arms=DECIDING.get(name, []),
        required=name in REQUIRED,
        result=RESULTS.get(name),
    )


def sample(
    evaluation: str,
    role: int,
    case: int,
    detected: bool | None,
    *,
    arm: str = "",
    variant: int = 0,
    selector: float = 0.5,
    second: bool | None = None,
    concept: str = "hourglass",
    similarity: float | None = None,
) -> Observation:
    """Make one observation; `detected` None is an unscored one."""
    judgements = [
        Judgement(judge="clip", score=selector, detected=selector >= 0.5, similarity=similarity),
        Judgement(judge="judge", score=0.9 if detected else 0.1, detected=bool(detected)),
        Judgement(judge="second", score=0.9, detected=bool(detected if second is None else second)),
    ]
    scored = detected is not None
    return Observation(
        evaluation=evaluation,
        role=role,
        model=ModelRole.Name(role),
        concept=concept,
        case_index=case,
        arm=arm,
        variant=variant,
        status=SampleStatus.SAMPLE_STATUS_SCORED if scored else SampleStatus.SAMPLE_STATUS_UNSCORED,
        reason="" if scored else "not finite",
        judgements=judgements if scored else [],
    )


def picture(role: int, arm: str, index: int, empty: float, prompt: float, concept: str = "hourglass") -> Observation:
    """Make one likelihood observation."""
    return Observation(
        evaluation="likelihood",
        role=role,
        concept=concept,
        case_index=index,
        arm=arm,
        status=SampleStatus.SAMPLE_STATUS_SCORED,
        measures={"loss_empty": empty, "loss_prompt": prompt},
    )


@dataclass
class Audit:
    """An audit under construction."""

    cases: int = 24
    observations: list[Observation] = field(default_factory=list)
    battery: list[str] = field(default_factory=list)
    allow_incomplete: bool = True
    decided_by: DecidedBy.ValueType = DecidedBy.DECIDED_BY_UNSPECIFIED
    inapplicable: dict[str, str] = field(default_factory=dict)
    """Reasons by name of the evaluations that do not apply to the models."""

    def evaluation(
        self,
        name: str,
        subject: Sequence[bool | None],
        reference: Sequence[bool | None],
        control: Sequence[bool | None],
    ) -> "Audit":
        """Add an evaluation with one draw a case."""
        self.battery.append(name)
        arm = DECIDING.get(name, [""])[0].replace("*", "0.1")
        for role, detections in ((SUBJECT, subject), (REFERENCE, reference), (CONTROL, control)):
            self.observations += [sample(name, role, case, hit, arm=arm) for case, hit in enumerate(detections)]
        return self

    def hits(self, name: str, subject: int, reference: int, control: int = 0) -> "Audit":
        """Add an evaluation by its number of hits, in the first cases."""
        return self.evaluation(
            name, *([case < hits for case in range(self.cases)] for hits in (subject, reference, control))
        )

    def held_against_itself(self, placebo: str = "") -> "Audit":
        """Let the control so far be the subject itself: judged for a placebo, or under prompts of other concepts."""
        for observation in self.observations:
            if observation.role == CONTROL:
                observation.model = ModelRole.Name(SUBJECT)
                observation.concept = placebo or observation.concept
        return self

    def likelihood(
        self,
        destruction: float,
        damage: float = 0.0,
        lost_pull: float = 1.0,
        pictures: int = 32,
        others: int = 64,
        spread: float = 0.05,
        pull: float = 0.2,
    ) -> "Audit":
        """Add likelihood pictures of a subject at a place of the plane, and of a control at destruction 1."""
        self.battery.append("likelihood")
        noise = np.random.default_rng(7)
        for role, gone, hurt, lost in ((SUBJECT, destruction, damage, lost_pull), (CONTROL, 1.0, 0.0, 1.0)):
            for index in range(pictures):
                empty = 0.04 * np.exp(gone + hurt + spread * noise.standard_normal())
                prompt = empty * np.exp(-pull * (1 - lost))
                self.observations.append(picture(role, "concept", index, empty, prompt))
            for index in range(others):
                empty = 0.04 * np.exp(hurt + spread * noise.standard_normal())
                self.observations.append(picture(role, "other", pictures + index, empty, empty, "moon"))
        for index in range(pictures):
            self.observations.append(picture(REFERENCE, "concept", index, 0.04, 0.04 * np.exp(-pull)))
        for index in range(others):
            self.observations.append(picture(REFERENCE, "other", pictures + index, 0.04, 0.04, "moon"))
        return self

    def without(self, name: str, reason: str = "it lacks something") -> "Audit":
        """Add an evaluation that does not apply to the models' family, and drop what was observed in it."""
        self.battery = [*(each for each in self.battery if each != name), name]
        self.observations = [each for each in self.observations if each.evaluation != name]
        self.inapplicable[name] = reason
        return self

    def interference(self, lost: int, cases: int = 40) -> "Audit":
        """Add another concept's detections: all by the reference, all but `lost` by the subject."""
        self.battery.append("interference")
        for case in range(cases):
            for role, hit, similarity in ((SUBJECT, case >= lost, 0.2), (REFERENCE, True, 0.3)):
                self.observations.append(
                    sample("interference", role, case, hit, concept=("moon", "ring")[case % 2], similarity=similarity)
                )
        return self

    def judge_quality(self, sensitive: int, false: int, near: int, pictures: int = 100) -> "Audit":
        """Add the judge's decisions on known pictures, by the number detected."""
        self.battery.append("judge-quality")
        for arm, detected in (("concept", sensitive), ("other", false), ("near-miss", near)):
            self.observations += [
                sample("judge-quality", REFERENCE, case, case < detected, arm=arm) for case in range(pictures)
            ]
        return self

    def spec(self, **tolerances: float) -> AuditSpec:
        """Return the audit's request."""
        spec = AuditSpec(subject="s", concept="hourglass", cases=self.cases, seed_base=11, tolerances=tolerances)
        spec.control, spec.decided_by = ModelRole.Name(CONTROL), self.decided_by
        spec.battery.allow_incomplete = self.allow_incomplete
        return spec

    def descriptions(self) -> list[EvaluationDescription]:
        """Describe every evaluation there is."""
        return [describe(name) for name in CLASSES]

    def verdict(self, **tolerances: float) -> Verdict:
        """Conclude."""
        return conclude(
            self.observations,
            self.descriptions(),
            [
                EvaluationRequest(
                    name=name,
                    not_applicable=NotApplicable(reason=self.inapplicable[name], family="a-family")
                    if name in self.inapplicable
                    else None,
                )
                for name in self.battery
            ],
            self.spec(**tolerances),
        )


@pytest.fixture
def new_audit() -> type[Audit]:
    """Make audits."""
    return Audit


@pytest.fixture
def audit() -> Audit:
    """An audit without observations."""
    return Audit()


@pytest.fixture
def observe() -> Callable[..., Observation]:
    """Make observations."""
    return sample


@pytest.fixture
def removed() -> Audit:
    """The audit of a model that shows nothing and has lost the knowledge, on the battery there is."""
    audit = Audit()
    for name in ("standard-prompt", "noise-based", "diffusion-completion", "textual-inversion"):
        audit.hits(name, 0, 24)
    return audit.likelihood(destruction=1.0)
