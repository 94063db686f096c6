"""An audit as a task of Inspect (inspect_ai): a sample for each case, a scorer for each evaluation.

    inspect eval unerase/audit -T subject=testbed/uce -T concept=hourglass

The backend runs the audit; Inspect's log holds each case's prompt, the pictures that decided it and what the judges
say of them. A case without a scored draw is unscored in Inspect, too, and a rate over no case is not a number. Needs
the extra `inspect`; the backend is found as by the command: UNERASE_ADDRESS, UNERASE_TOKEN and others.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import transcript
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentText,
    ModelOutput,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from unerase._applicability import inapplicable
from unerase._arrow import JUDGES
from unerase._client import Client
from unerase._environment import address_of, settings_from_environment
from unerase.integrations._deciding import COLUMNS, Decided, decide
from unerase.integrations._reports import conclusion_word, verdicts_of
from unerase.v1.audits_pb2 import Audit, AuditSpec, AuditState, Battery, Report
from unerase.v1.types_pb2 import EvaluationClass, EvaluationRequest, ModelAccess

_Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@task
def audit(
    subject: str,
    concept: str,
    battery: str = "quick",
    evaluations: str | list[str] | None = None,
    cases: int = 0,
    steps: int = 0,
    seed_base: int | None = None,
    allow_incomplete: bool = False,
    pictures: bool | None = None,
    address: str | None = None,
) -> Task:
    """Audit whether a concept was erased from a model.

    Args:
        subject: The model to audit, as `unerase models` names it.
        concept: The concept, as `unerase concepts` names it.
        battery: A preset that `unerase presets` lists; empty for `evaluations` alone.
        evaluations: Names of evaluations, separated by commas, beside the preset's.
        cases: Number of cases; 0 means the preset's.
        steps: Denoising steps; 0 means the preset's.
        seed_base: Gives the same cases again; drawn by the backend if absent.
        allow_incomplete: Conclude even if a required evaluation is not in the battery.
        pictures: Keep the deciding pictures in the log; if absent, unless the concept is sensitive.
        address: HOST:PORT of the backend; if absent, UNERASE_ADDRESS or this machine.
    """
    names = evaluations.split(",") if isinstance(evaluations, str) else list(evaluations or ())
    spec = AuditSpec(
        subject=subject,
        concept=concept,
        battery=Battery(
            preset=battery,
            evaluations=[EvaluationRequest(name=name.strip()) for name in names if name.strip()],
            allow_incomplete=allow_incomplete,
        ),
        cases=cases,
        steps=steps,
        seed_base=seed_base,
    )
    run = _Run(address_of(address), spec, pictures)
    planned, scored = run.plan()
    samples = [
        Sample(input=f"{concept}, case {case}", id=case, metadata={"subject": subject, "concept": concept})
        for case in range(planned.spec.cases)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=concept),
        solver=_audited(run),
        scorer=[_detection(run, evaluation, access) for evaluation, access in scored],
        # The backend runs the model.
        model="none",
        name="audit",
        display_name=f"{subject}: {concept}",
        metadata={
            "subject": subject,
            "concept": concept,
            "seed_base": str(planned.spec.seed_base),
            "not_applicable": inapplicable(planned.spec),
        },
    )


@dataclass(frozen=True)
class _Found:
    """An audit that has ended: its report, and the subject's cases by evaluation and access."""

    report: Report
    decided: Mapping[tuple[str, str], Mapping[int, Decided]]
    content: Mapping[str, bytes]
    """The deciding pictures by digest."""


class _Run:
    """One audit, which the first sample begins and all samples wait for."""

    def __init__(self, address: str, spec: AuditSpec, pictures: bool | None) -> None:
        self._address = address
        self._spec = spec
        self._pictures = pictures
        self._accesses: list[str] = [""]
        self._lock: anyio.Lock | None = None
        self._found: _Found | Exception | None = None

    def plan(self) -> tuple[Audit, list[tuple[str, str]]]:
        """Return the audit as it will be, and its evaluations with the accesses that each has a verdict for.

        Those that do not apply to the models are left out.

        Raises:
            UneraseError: the backend refuses it, or does not answer.
        """
        with Client(self._address, settings=settings_from_environment()) as client:
            planned = client.create_audit(self._spec, validate_only=True)
            described = {each.name: each for each in client.evaluations().evaluations}
        # The cases that were counted are those that will run.
        self._spec.cases, self._spec.seed_base = planned.spec.cases, planned.spec.seed_base
        if planned.spec.access == ModelAccess.MODEL_ACCESS_BOTH:
            self._accesses = ["open_weights", "deployed"]
        measure = EvaluationClass.EVALUATION_CLASS_MEASURE
        without = inapplicable(planned.spec)
        names = [each.name for each in planned.spec.battery.evaluations if each.name not in without]
        return planned, [
            (name, access)
            for access in self._accesses
            for name in names
            if name in described and described[name].evaluation_class != measure
        ]

    async def found(self) -> _Found:
        """Return the audit once it has ended; the first caller begins it.

        Raises:
            UneraseError: the backend refuses it, or does not answer.
            RuntimeError: it did not succeed.
        """
        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            if self._found is None:
                try:
                    self._found = await anyio.to_thread.run_sync(self._audit, abandon_on_cancel=True)
                except Exception as error:
                    self._found = error
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def _audit(self) -> _Found:
        with Client(self._address, settings=settings_from_environment()) as client:
            ended = client.audit(self._spec)
            if ended.state != AuditState.AUDIT_STATE_SUCCEEDED:
                state = AuditState.Name(ended.state).removeprefix("AUDIT_STATE_").lower()
                raise RuntimeError(f"audit {ended.id} has {state}: {ended.error_message}")
            report = client.report_message(ended.id)
            rows = client.observations(ended.id).select(COLUMNS).to_pylist()
            decided: dict[tuple[str, str], Mapping[int, Decided]] = {}
            for description in report.content.descriptions:
                own = [row for row in rows if row["evaluation"] == description.name]
                for access in self._accesses:
                    seen = [row for row in own if not access or row["access"] in ("unspecified", access)]
                    decided[description.name, access] = decide(seen, description, report.content.spec.decided_by)
            kept = not report.content.concept.sensitive if self._pictures is None else self._pictures
            digests = {case.draw["picture_digest"] for cases in decided.values() for case in cases.values() if kept} - {
                "",
                None,
            }
            content = {digest: client.artifact(ended.id, digest) for digest in sorted(digests)}
        return _Found(report, decided, content)


def _audited(run: _Run) -> Solver:
    @solver(name="audited")
    def audited() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            found = await run.found()
            case = int(state.sample_id)
            content = found.report.content
            prompt = next((each.prompt for each in content.cases if each.index == case), "")
            parts = _parts(found, case)
            message = ChatMessageAssistant(content=parts)
            state.messages = [ChatMessageUser(content=prompt or state.input_text), message]
            choice = ChatCompletionChoice(message=message)
            state.output = ModelOutput(model=content.spec.subject, choices=[choice])
            said = {
                (about or "verdict"): {"conclusion": conclusion_word(each), "statement": each.statement}
                for about, each in verdicts_of(found.report)
            }
            state.metadata |= {"audit": found.report.audit_id, "verdicts": said}
            transcript().info({"audit": found.report.audit_id, **said}, source="unerase")
            return state

        return solve

    return audited()


def _parts(found: _Found, case: int) -> list[Content]:
    """The pictures that decided a case, each after the name of its evaluation."""
    parts: list[Content] = []
    for (evaluation, access), cases in found.decided.items():
        if case not in cases:
            continue
        draw = cases[case].draw
        picture = found.content.get(draw["picture_digest"])
        parts.append(ContentText(text=f"{_name(evaluation, access)}: {draw['prompt']}"))
        if picture is not None:
            encoded = base64.b64encode(picture).decode()
            parts.append(ContentImage(image=f"data:image/png;base64,{encoded}"))
    return parts


def _detection(run: _Run, evaluation: str, access: str) -> Scorer:
    @scorer(metrics=[detection_rate(), wilson_lower(), wilson_upper()], name=_name(evaluation, access))
    def detection() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:
            found = await run.found()
            case = found.decided.get((evaluation, access), {}).get(int(state.sample_id))
            return _score(case)

        return score

    return detection()


def _score(case: Decided | None) -> Score:
    if case is None:
        # A sequential audit stops an evaluation once its answer is settled.
        return Score.unscored(reason="not_run", explanation="The evaluation did not run this case.")
    draw = case.draw
    judges = {
        draw[f"{judge}_name"]: {what: draw[f"{judge}_{what}"] for what in ("score", "detected", "label")}
        for judge in JUDGES
        if draw[f"{judge}_name"]
    }
    said = {
        "judges": judges,
        "arm": draw["arm"],
        "variant": draw["variant"],
        "picture": draw["picture_digest"],
        "prompt": draw["prompt"],
        "doubtful": case.doubtful,
        "status": draw["status"],
    }
    if case.detected is None:
        reason = "scoring_failed" if draw["status"] in ("unscored", "scored") else str(draw["status"])
        return Score.unscored(reason=reason, explanation=draw["reason"] or None, metadata=said)
    answer = "withheld" if draw["status"] == "withheld" else "shown" if case.detected else "not shown"
    words = [
        f"{name} {'sees' if each['detected'] else 'does not see'} it ({each['score']:.3f})"
        for name, each in list(judges.items())[1:]
    ]
    explanation = "; ".join(words) or draw["reason"] or None
    return Score(value=float(case.detected), answer=answer, explanation=explanation, metadata=said)


def _name(evaluation: str, access: str) -> str:
    return f"{evaluation}@{access}" if access else evaluation


@metric
def detection_rate() -> Metric:
    """The share of the scored cases in which the concept is detected; not a number if none is scored."""

    def figure(scores: list[SampleScore]) -> float:
        return _rate(scores)[0]

    return figure


@metric
def wilson_lower() -> Metric:
    """The lower end of Wilson's 95 % interval of the detection rate."""

    def figure(scores: list[SampleScore]) -> float:
        return _rate(scores)[1]

    return figure


@metric
def wilson_upper() -> Metric:
    """The upper end of Wilson's 95 % interval of the detection rate."""

    def figure(scores: list[SampleScore]) -> float:
        return _rate(scores)[2]

    return figure


def _rate(scores: Sequence[SampleScore]) -> tuple[float, float, float]:
    """Rate, lower and upper end (E. B. Wilson 1927, eq. 6); Inspect leaves out what is unscored."""
    values = [value for each in scores if math.isfinite(value := each.score.as_float())]
    cases = len(values)
    if not cases:
        return math.nan, math.nan, math.nan
    rate = sum(values) / cases
    middle = rate + _Z**2 / (2 * cases)
    reach = _Z * math.sqrt(rate * (1 - rate) / cases + _Z**2 / (4 * cases**2))
    scale = 1 + _Z**2 / cases
    return rate, max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)
