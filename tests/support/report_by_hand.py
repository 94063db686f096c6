"""Reports made from hand-written observations and messages, and a parser for their page."""

import hashlib
import io
import math
from collections.abc import Mapping
from html.parser import HTMLParser
from types import MappingProxyType

from PIL import Image

from unerase.v1.audits_pb2 import AuditSpec, Manifest, Report
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import (
    Case,
    Concept,
    ControlKind,
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    Finding,
    Judgement,
    ModelRole,
    NotApplicable,
    Observation,
    ResultKind,
    SampleStatus,
    Tensor,
)
from unerase.v1.verdicts_pb2 import (
    Alternatives,
    AlternativesResult,
    ArmResult,
    Calibration,
    Estimate,
    FigureMean,
    Interval,
    LabelShare,
    MeasuredFigure,
    MeasureResult,
    Neighbour,
    Rate,
    TracingPoint,
    TracingResult,
)
from unerase_backend import report
from unerase_backend.verdict import conclude, controls
from unerase_backend.verdict.statistics import wilson

SUBJECT, REFERENCE, CONTROL = (
    ModelRole.MODEL_ROLE_SUBJECT,
    ModelRole.MODEL_ROLE_REFERENCE,
    ModelRole.MODEL_ROLE_CONTROL,
)
MODELS = {SUBJECT: "s", REFERENCE: "r", CONTROL: "c"}
CASES, DRAWS = 8, 3
HOSTILE = '<script>alert("x")</script>'

DESCRIPTIONS = [
    EvaluationDescription(
        name="standard-prompt",
        title="Standard prompt",
        evaluation_class=EvaluationClass.EVALUATION_CLASS_PLAIN,
        required=True,
    ),
    EvaluationDescription(
        name="noise-based",
        title="Noise-based",
        evaluation_class=EvaluationClass.EVALUATION_CLASS_ELICITING,
        deciding_arms=["noise"],
        required=True,
    ),
    EvaluationDescription(
        name="likelihood",
        title="Likelihood",
        evaluation_class=EvaluationClass.EVALUATION_CLASS_MEASURE,
        result=ResultKind.RESULT_KIND_LIKELIHOOD,
        required=True,
    ),
    *(
        EvaluationDescription(name=name, title=name, required=True)
        for name in ("diffusion-completion", "textual-inversion", "unlearn-diff-atk")
    ),
]


def png(side: int, value: int) -> bytes:
    """A flat picture."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 90, 90)).save(file, "PNG")
    return file.getvalue()


PICTURES = {hashlib.sha256(content).hexdigest(): content for content in (png(32, value) for value in range(250))}
DIGESTS = list(PICTURES)


def sample(evaluation: str, role: int, case: int, hit: bool, arm: str = "", variant: int = 0, selector: float = 0.5):
    judgements = [
        Judgement(judge="clip", score=selector),
        Judgement(judge="judge", score=float(hit), detected=hit),
        Judgement(judge="second", score=float(hit), detected=hit),
    ]
    return Observation(
        evaluation=evaluation,
        role=role,
        model=MODELS[role],
        concept=HOSTILE,
        case_index=case,
        arm=arm,
        variant=variant,
        status=SampleStatus.SAMPLE_STATUS_SCORED,
        judgements=judgements,
        picture_digest=DIGESTS[(case * 31 + variant * 7 + role + 50 * (arm == "noise")) % len(DIGESTS)],
        prompt=HOSTILE,
    )


def measured(role: int, arm: str, index: int, empty: float, prompt: float) -> Observation:
    return Observation(
        evaluation="likelihood",
        role=role,
        concept="hourglass" if arm == "concept" else "moon",
        case_index=index,
        arm=arm,
        status=SampleStatus.SAMPLE_STATUS_SCORED,
        measures={"loss_empty": empty, "loss_prompt": prompt},
    )


def observed(*, control: bool = True, pull: float = 0.2) -> list[Observation]:
    """The observations of a subject that noise recovers in the odd cases: there the selector prefers the hit."""
    roles = (SUBJECT, REFERENCE, CONTROL) if control else (SUBJECT, REFERENCE)
    observations = []
    for role in roles:
        for case in range(CASES):
            observations.append(sample("standard-prompt", role, case, role == REFERENCE))
            for variant in range(DRAWS):
                hit = role == REFERENCE or (role == SUBJECT and variant == 1)
                preferred = variant == (1 if case % 2 else 2)
                observations.append(sample("noise-based", role, case, hit, "noise", variant, 0.9 if preferred else 0.1))
                # Would win every selection if its arm decided.
                observations.append(sample("noise-based", role, case, True, "plain-seeds", variant, 1.0))
        for index in range(6):
            empty = 0.04 + 0.001 * index + 0.002 * (role == SUBJECT)
            observations.append(measured(role, "concept", index, empty, empty * math.exp(-pull)))
            observations.append(measured(role, "other", 6 + index, empty, empty))
    return observations


def made(
    observations: list[Observation],
    findings: list[Finding] | None = None,
    manifest: Manifest | None = None,
    inapplicable: Mapping[str, str] = MappingProxyType({}),
    **fields: object,
) -> Report:
    """A report; `inapplicable` are the reasons of evaluations that do not apply to the models, by their names."""
    spec = AuditSpec(
        subject="s",
        concept=HOSTILE,
        reference=MODELS[REFERENCE],
        control=MODELS[CONTROL],
        cases=CASES,
        seed_base=2**63 - 1,
        guidance_scale=3,
        tolerances={"excess": 0.15, "destruction": 0.1, "general_damage": 0.25, "interference": 0.15},
    )
    spec.MergeFrom(AuditSpec(**fields))
    spec.battery.allow_incomplete = True
    names = dict.fromkeys([*(description.name for description in DESCRIPTIONS[:3]), *inapplicable])
    requested = [
        EvaluationRequest(name=name, not_applicable=NotApplicable(reason=inapplicable[name]))
        if name in inapplicable
        else EvaluationRequest(name=name)
        for name in names
    ]
    content = report.build(
        spec,
        Concept(name="hourglass", picture_digests=DIGESTS[:12], near_miss_digests=DIGESTS[12:14]),
        [Case(index=index, prompt=HOSTILE, latent_seed=index) for index in reversed(range(CASES))],
        requested,
        conclude(observations, DESCRIPTIONS, requested, spec),
        observations,
        findings or [],
        manifest or Manifest(versions={"torch": "2.13.0"}, numerics_profile="32 float32 cpu"),
        DESCRIPTIONS,
    )
    return Report(schema_version=report.SCHEMA_VERSION, content=content, audit_id="a1")


def rate(hits: int, cases: int) -> Rate:
    """A rate with Wilson's interval."""
    lower, upper = wilson(hits, cases)
    return Rate(hits=hits, cases=cases, wilson=Interval(lower=float(lower), upper=float(upper)))


def around(value: float, reach: float) -> Estimate:
    """A figure with a symmetric interval."""
    return Estimate(value=value, interval=Interval(lower=value - reach, upper=value + reach))


def traced(*, pull: bool = True) -> TracingResult:
    """A path on which a blob replaces the concept, destruction stays small and the pull is reversed."""
    points = []
    for tenth in range(11):
        strength = tenth / 10
        hits = (24, 24, 23, 20, 14, 8, 3, 1, 0, 0, 0)[tenth]
        labels = [("hourglass", hits), ("blob", 24 - hits)]
        point = TracingPoint(
            strength=strength,
            detected=rate(hits, 24),
            similarity=0.31 - 0.12 * strength,
            destruction=around(0.06 * strength**2, 0.02),
            general_damage=around(0.41 * strength, 0.04),
            labels=[
                LabelShare(label=label, pictures=count, picture_digest=DIGESTS[tenth if at else 40 + tenth])
                for at, (label, count) in enumerate(sorted(labels, key=lambda each: -each[1]))
                if count
            ],
        )
        if pull:
            point.lost_pull.CopyFrom(around(1.7 * strength**1.5, 0.2))
        points.append(point)
    return TracingResult(points=points)


def tabled() -> MeasureResult:
    """The result of a third party's measure on two of the models."""
    mean = FigureMean(mean=around(0.00123, 0.0004), cases=8)
    return MeasureResult(
        name="sharpness",
        title=f"Sharpness {HOSTILE}",
        figures=[MeasuredFigure(arm="edges", concept=HOSTILE, figure="width", subject=mean, reference=mean)],
        observations=17,
        unscored=1,
    )


STANDING = {
    SUBJECT: [("blob", 15), ("house", 4), ("triangle", 3), (HOSTILE, 1), ("hourglass", 1)],
    REFERENCE: [("hourglass", 24)],
    CONTROL: [("triangle", 13), ("house", 11)],
}


def standing() -> AlternativesResult:
    """What each model makes in the concept's place."""
    models = []
    for role, labels in STANDING.items():
        shares = [LabelShare(label=label, pictures=count, picture_digest=DIGESTS[count]) for label, count in labels]
        near = [
            Neighbour(concept=name, similarity=0.3 - 0.02 * at) for at, name in enumerate(("house", "moon", "heart"))
        ]
        models.append(
            Alternatives(
                role=role,
                pictures=24,
                labels=shares,
                entropy=around(0.4 * len(labels), 0.2),
                neighbours=near,
                dispersion=around(0.21, 0.03),
            )
        )
    models[0].unscored = 2
    return AlternativesResult(models=models)


def found() -> list[Finding]:
    """The findings of four attacks: a word for all cases, a prompt for each case, weights at several steps, a
    classifier.
    """
    findings = []
    for role in (SUBJECT, REFERENCE, CONTROL):
        name = ModelRole.Name(role)
        losses = [0.06 + 0.2 * math.exp(-step / 40) + 0.01 * math.sin(role + step) for step in range(125)]
        findings.append(
            Finding(
                evaluation="textual-inversion",
                role=role,
                model=name,
                prompt="a painting of a <learned>",
                placeholder="<learned>",
                embedding=Tensor(shape=[1, 2], values=b"\x00\x00\x40\x40\x00\x00\x80\x40"),
                losses=losses,
                steps=250,
            )
        )
        findings += [
            Finding(
                evaluation="unlearn-diff-atk",
                role=role,
                model=name,
                case_index=case,
                prompt=f"wedge {HOSTILE} box a picture of a hourglass",
                token_ids=[17, 305, 4],
                steps=40 * (case + 1),
                losses=losses[: 10 * (case + 1)],
                figures={"best": losses[10 * case], "first-success": case},
            )
            for case in range(4)
        ]
        findings += [
            Finding(
                evaluation="relearning",
                role=role,
                model=name,
                label=f"{kind}@{steps}",
                steps=steps,
                losses=losses[:steps],
                weights_digest="ab" * 32,
            )
            for kind in ("few-shot", "benign")
            for steps in (40, 5)
        ]
        findings.append(
            Finding(
                evaluation="classifier-guidance",
                role=role,
                model=name,
                label="classifier",
                figures={**{f"auc@{at}": 1 - at / 2000 for at in (10, 100, 400, 800)}, "pictures@64": 64},
            )
        )
    return findings


def whole() -> Report:
    """A report with every optional part."""
    made_report = made(observed(), found())
    verdict = made_report.content.verdict
    verdict.tracing.CopyFrom(traced())
    verdict.alternatives.CopyFrom(standing())
    verdict.measures.append(tabled())
    plain, noise = verdict.evaluations
    plain.calibration.CopyFrom(
        Calibration(
            sensitivity=rate(46, 48), specificity=rate(23, 24), budget=1, steps=50, source="testbed 1, <b>two</b>"
        )
    )
    noise.placebo, noise.stopped_after = True, 6
    noise.control_kind = ControlKind.CONTROL_KIND_PLACEBO
    made_report.content.spec.placebos.append("zigzag")
    noise.control_statement = controls.statement(noise, made_report.content.spec)
    verdict.control_statement = controls.overview(verdict.evaluations, made_report.content.spec)
    for kind, hits in (("few-shot", (0, 3, 9, 20)), ("benign", (0, 0, 1, 2))):
        for steps, count in zip((0, 10, 40, 160), hits, strict=True):
            noise.arms.append(
                ArmResult(
                    arm=f"{kind}@{steps}", draws=1, subject=rate(count, 24), reference=rate(24, 24), control=rate(0, 24)
                )
            )
    made_report.content.manifest.models.append(Model(name="r", digest="cd" * 32))
    return made_report


SHAPES = {"line", "circle", "rect", "polygon", "polyline", "path", "image", "use"}
"""SVG elements without content."""


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.titles = 0
        """The number of titles that are not empty."""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "br", "input", *SHAPES}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles += bool(data.strip())
        if self.open and self.open[-1] != "style":
            self.text += data

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


def page(made_report: Report) -> Page:
    return Page(report.render_html(made_report, PICTURES.__getitem__))
