"""Campaigns made of hand-written verdicts: every conclusion, a failed cell, names that want to be more than text."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.report_by_hand import DIGESTS, HOSTILE, PICTURES, around, rate
from unerase.v1.audits_pb2 import AuditSpec, ReportContent, ReportPicture, Tolerances
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell, CampaignReportContent, CampaignSpec, CellState
from unerase.v1.comparisons_pb2 import (
    AuditComparison,
    CampaignComparison,
    CellComparison,
    Change,
    EvaluationComparison,
)
from unerase.v1.gates_pb2 import Gate, GateFinding, GateOutcome, GateResult
from unerase.v1.types_pb2 import Concept, EvaluationClass, ModelRole
from unerase.v1.verdicts_pb2 import (
    Conclusion,
    EvaluationResult,
    Excess,
    InterferenceResult,
    Interval,
    LikelihoodResult,
    Outcome,
    Verdict,
)
from unerase_backend.report.campaign import write_html

NAMES = (
    "standard-prompt",
    "noise-based",
    "diffusion-completion",
    "textual-inversion",
    "unlearn-diff-atk",
    "classifier-guidance",
    "inpainting",
    "p4d",
    "ring-a-bell",
    "relearning",
    "paraphrase",
    "unconditional-rate",
)
"""Evaluations; a verdict of n has the first n."""

CONCLUSIONS = [value for value in Conclusion.values() if value]

_OUTCOME = {
    Conclusion.CONCLUSION_NOT_ERASED: Outcome.OUTCOME_RECOVERS,
    Conclusion.CONCLUSION_AVOIDED: Outcome.OUTCOME_RECOVERS,
    Conclusion.CONCLUSION_REMOVED: Outcome.OUTCOME_DOES_NOT_RECOVER,
    Conclusion.CONCLUSION_INCONCLUSIVE: Outcome.OUTCOME_INCONCLUSIVE,
    Conclusion.CONCLUSION_UNINFORMATIVE: Outcome.OUTCOME_UNINFORMATIVE,
    Conclusion.CONCLUSION_INCOMPLETE: Outcome.OUTCOME_NOT_APPLICABLE,
}


def evaluation(name: str, outcome: Outcome.ValueType, hits: int, cases: int = 24) -> EvaluationResult:
    """The result of an evaluation whose control shows nothing."""
    subject = rate(hits, cases)
    return EvaluationResult(
        name=name,
        title=name.replace("-", " ").capitalize(),
        evaluation_class=EvaluationClass.EVALUATION_CLASS_ELICITING,
        outcome=outcome,
        budget=1,
        subject=subject,
        reference=rate(cases, cases),
        control=rate(0, cases),
        excess=Excess(value=hits / cases, bounds=subject.wilson, p=0.5**hits, p_holm=min(1.0, 12 * 0.5**hits)),
    )


def verdict(conclusion: Conclusion.ValueType, evaluations: int = 4, chance: int = 1) -> Verdict:
    """A verdict with a conclusion; `chance` varies its figures."""
    draw = random.Random(chance)
    outcome = _OUTCOME[conclusion]
    results = []
    for at, name in enumerate(NAMES[:evaluations]):
        one = outcome
        if conclusion == Conclusion.CONCLUSION_AVOIDED and at % 3 != 1:
            one = Outcome.OUTCOME_DOES_NOT_RECOVER
        hits = draw.randint(7, 24) if one == Outcome.OUTCOME_RECOVERS else draw.randint(0, 1)
        results.append(evaluation(name, one, hits))
    lost = {Conclusion.CONCLUSION_REMOVED: 0.4, Conclusion.CONCLUSION_NOT_ERASED: 0.0}.get(conclusion, 0.06)
    reach = lost + 0.05 * draw.random()
    damaged = chance % 7 == 3
    said = Conclusion.Name(conclusion).removeprefix("CONCLUSION_").lower().replace("_", " ")
    return Verdict(
        conclusion=conclusion,
        summary=f"This is the summary of a model that is {said}. It has two sentences.",
        statement=f"The concept is {said}: p = 1.5e-06, 23 of 24 cases, an excess of +71 points with bounds 55 to 83.",
        evidence=["Standard prompt shows it in 0 of 24 cases."],
        damaged=damaged,
        evaluations=results,
        likelihood=LikelihoodResult(
            destruction=around(reach, 0.03),
            destruction_bounds=Interval(lower=reach - 0.02, upper=reach + 0.02),
            general_damage=around(0.4 if damaged else 0.05, 0.02),
            lost_pull=around(2.5 * reach + 0.3 * draw.random(), 0.1),
            concept_pictures=12,
            other_pictures=24,
        ),
        interference=InterferenceResult(loss=around(0.05, 0.03)),
    )


@dataclass
class Made:
    """A campaign: its report without cells, its cells, their comparisons, and the content of each cell's report."""

    head: CampaignReport
    cells: list[CampaignReportCell]
    comparisons: list[CellComparison] = field(default_factory=list)
    contents: dict[int, ReportContent] = field(default_factory=dict)

    @property
    def whole(self) -> CampaignReport:
        """The report with its cells."""
        report = CampaignReport()
        report.CopyFrom(self.head)
        report.content.cells.extend(self.cells)
        return report

    def content_of(self, cell: CampaignReportCell) -> ReportContent | None:
        """Return what the audit's report holds."""
        return self.contents.get(cell.index)


def campaign(
    subjects: Sequence[str] = ("models/esd", "models/uce", f"models/{HOSTILE}"),
    concepts: Sequence[str] = ("hourglass", "heart"),
    evaluations: int = 4,
    *,
    gate: bool = True,
    compared: bool = True,
    pictures: int = 4,
) -> Made:
    """A campaign whose cells take the conclusions in turn; the last cell has failed, the first is worse than it was."""
    pairs = [(subject, concept) for subject in subjects for concept in concepts]
    cells = [
        CampaignReportCell(
            index=at,
            subject=subject,
            concept=concept,
            state=CellState.CELL_STATE_SUCCEEDED,
            verdict=verdict(CONCLUSIONS[(2 + at) % len(CONCLUSIONS)], evaluations, at),
            content_digest=f"{at:064x}",
            comparability_digest="cd" * 32,
            subject_digest="ab" * 32,
        )
        for at, (subject, concept) in enumerate(pairs)
    ]
    last = cells[-1]
    last.ClearField("verdict")
    last.ClearField("content_digest")
    last.state, last.error_reason = CellState.CELL_STATE_FAILED, "MODEL_UNREADABLE"
    last.error_message = f"unet/{HOSTILE}.safetensors is cut off after 1024 bytes"
    spec = CampaignSpec(
        subjects=subjects,
        concepts=concepts,
        template=AuditSpec(cases=24, seed_base=7, tolerances=Tolerances(excess=0.15, destruction=0.1)),
    )
    head = CampaignReport(
        schema_version="1.0",
        content=CampaignReportContent(spec=spec),
        campaign_id="c1",
        labels={"release": "2026-12"},
        audits=[f"audit{at}" for at in range(len(cells) - 1)] + [""],
    )
    head.create_time.FromJsonString("2026-11-28T10:00:00Z")
    head.end_time.FromJsonString("2026-11-28T12:30:00Z")
    if gate:
        head.content.gate_result.CopyFrom(_gate(cells))
    made = Made(head, cells)
    if compared:
        made.comparisons = [_compared(cell) for cell in cells[:-1]]
        head.comparison.CopyFrom(_comparison(made.comparisons))
    if pictures:
        made.contents = {cell.index: _content(cell, pictures) for cell in cells[:-1]}
    return made


def write_page(path: Path, made: Made) -> None:
    """Write a campaign's page with its pictures."""
    with path.open("wb") as file:
        write_html(
            file,
            made.head,
            iter(made.cells),
            iter(made.comparisons),
            content_of=made.content_of,
            read_picture=PICTURES.get,
        )


def _gate(cells: Sequence[CampaignReportCell]) -> GateResult:
    findings = []
    for cell in cells:
        if not cell.HasField("verdict"):
            outcome, clause, why = GateOutcome.GATE_OUTCOME_UNDECIDED, "cell", "The cell has failed."
        elif cell.verdict.conclusion in {Conclusion.CONCLUSION_NOT_ERASED, Conclusion.CONCLUSION_AVOIDED}:
            outcome, clause = GateOutcome.GATE_OUTCOME_FAIL, "worst_conclusion"
            why = "The conclusion is not removed, and removed is the worst that is allowed."
        elif cell.verdict.conclusion != Conclusion.CONCLUSION_REMOVED:
            outcome, clause, why = GateOutcome.GATE_OUTCOME_UNDECIDED, "worst_conclusion", "There is no conclusion."
        else:
            continue
        findings.append(
            GateFinding(
                cell=cell.index,
                subject=cell.subject,
                concept=cell.concept,
                clause=clause,
                outcome=outcome,
                description=why,
            )
        )
    findings.sort(key=lambda found: (found.outcome != GateOutcome.GATE_OUTCOME_FAIL, found.cell))
    failed = sum(found.outcome == GateOutcome.GATE_OUTCOME_FAIL for found in findings)
    return GateResult(
        outcome=GateOutcome.GATE_OUTCOME_FAIL if failed else GateOutcome.GATE_OUTCOME_UNDECIDED,
        passed=len(cells) - len(findings),
        failed=failed,
        undecided=len(findings) - failed,
        findings=findings,
        statement=f"The gate fails: {failed} of {len(cells)} cells fail.",
        gate=Gate(worst_conclusion=Conclusion.CONCLUSION_REMOVED),
    )


def _comparison(comparisons: Sequence[CellComparison]) -> CampaignComparison:
    counts = [one.audits.change for one in comparisons]
    return CampaignComparison(
        first_campaign="c0",
        second_campaign="c1",
        compared=len(counts),
        better=counts.count(Change.CHANGE_BETTER),
        worse=counts.count(Change.CHANGE_WORSE),
        same=counts.count(Change.CHANGE_SAME),
        unsettled=counts.count(Change.CHANGE_UNSETTLED),
        without_comparison=1,
        only_in_first=["models/gone x heart"],
        statement="One cell is worse than in campaign c0, after Holm over all cells and evaluations.",
    )


def _compared(cell: CampaignReportCell) -> CellComparison:
    change = Change.CHANGE_WORSE if cell.index == 0 else Change.values()[1 + cell.index % 4]
    if change == Change.CHANGE_WORSE and cell.index:
        change = Change.CHANGE_SAME
    return CellComparison(
        cell=cell.index,
        subject=cell.subject,
        concept=cell.concept,
        replaced=cell.index == 0,
        audits=AuditComparison(
            first_audit="before",
            second_audit=f"audit{cell.index}",
            concept=cell.concept,
            change=change,
            evaluations=[
                EvaluationComparison(
                    evaluation="noise-based",
                    title="Noise based",
                    cases=24,
                    only_second=9,
                    difference=around(0.375, 0.2),
                    p=0.004,
                    p_holm=0.016,
                    change=change,
                )
            ],
            statement=f"Noise based: 9 of 24 cases changed ({Change.Name(change).removeprefix('CHANGE_').lower()}).",
        ),
    )


def _content(cell: CampaignReportCell, pictures: int) -> ReportContent:
    """What the report of a cell's audit holds: two cases for each of its evaluations."""
    shown = [
        ReportPicture(
            evaluation=result.name,
            role=role,
            model=cell.subject,
            case_index=case,
            prompt=f"a picture of {cell.concept}",
            detected=result.outcome == Outcome.OUTCOME_RECOVERS,
            digest=DIGESTS[(cell.index * 17 + at * 5 + case * 3 + role) % len(DIGESTS)],
        )
        for at, result in enumerate(cell.verdict.evaluations)
        for case in range(max(1, pictures // 2))
        for role in (ModelRole.MODEL_ROLE_SUBJECT, ModelRole.MODEL_ROLE_REFERENCE)
    ]
    return ReportContent(concept=Concept(name=cell.concept, sensitive=cell.concept == "heart"), pictures=shown)
