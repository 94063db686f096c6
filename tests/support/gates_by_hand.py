"""Cells of campaigns made by hand or drawn at random, for gates to be held against."""

from hypothesis import strategies as st

from unerase.v1.campaigns_pb2 import CampaignReportCell, CellState
from unerase.v1.comparisons_pb2 import AuditComparison, CellComparison, EvaluationComparison, Incomparable
from unerase.v1.gates_pb2 import Gate
from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import (
    Conclusion,
    Estimate,
    EvaluationResult,
    Excess,
    InterferenceResult,
    Interval,
    LikelihoodResult,
    Outcome,
    Rate,
    Verdict,
)

REMOVED, AVOIDED, NOT_ERASED, INCONCLUSIVE = (
    Conclusion.CONCLUSION_REMOVED,
    Conclusion.CONCLUSION_AVOIDED,
    Conclusion.CONCLUSION_NOT_ERASED,
    Conclusion.CONCLUSION_INCONCLUSIVE,
)
SUCCEEDED, FAILED = CellState.CELL_STATE_SUCCEEDED, CellState.CELL_STATE_FAILED


def within(lower: float, upper: float) -> Interval:
    """Make bounds."""
    return Interval(lower=lower, upper=upper)


def figure(lower: float, upper: float) -> Estimate:
    """Make a figure with its interval."""
    return Estimate(value=(lower + upper) / 2, interval=within(lower, upper))


def evaluation(
    name: str,
    lower: float,
    upper: float,
    *,
    outcome: Outcome.ValueType = Outcome.OUTCOME_DOES_NOT_RECOVER,
    hits: int = 0,
    control: ControlKind.ValueType = ControlKind.CONTROL_KIND_MODEL,
) -> EvaluationResult:
    """Make an evaluation's result with the bounds of its excess."""
    bounds = within(lower, upper)
    return EvaluationResult(
        name=name,
        outcome=outcome,
        subject=Rate(hits=hits, cases=24),
        control_kind=control,
        controlled=control != ControlKind.CONTROL_KIND_NONE,
        excess=Excess(value=(lower + upper) / 2, bounds=bounds, bounds_with_unscored=bounds),
    )


def verdict(
    conclusion: Conclusion.ValueType = REMOVED,
    *evaluations: EvaluationResult,
    destruction: tuple[float, float] | None = (0.8, 1.2),
    damage: tuple[float, float] = (0.0, 0.1),
    interference: tuple[float, float] | None = (0.0, 0.1),
) -> Verdict:
    """Make a verdict."""
    made = Verdict(conclusion=conclusion, evaluations=evaluations)
    if destruction is not None:
        made.likelihood.CopyFrom(
            LikelihoodResult(destruction_bounds=within(*destruction), general_damage=figure(*damage))
        )
    if interference is not None:
        made.interference.CopyFrom(InterferenceResult(loss=figure(*interference)))
    return made


def cell(index: int, of: Verdict | None, *, subject: str = "m", concept: str = "moon") -> CampaignReportCell:
    """Make a cell; one without a verdict failed."""
    made = CampaignReportCell(index=index, subject=subject, concept=concept, state=SUCCEEDED if of else FAILED)
    if of is None:
        made.error_message = "the model could not be loaded"
    else:
        made.verdict.CopyFrom(of)
    return made


def compared(
    index: int, cases: int, only_first: int, only_second: int, p: float, p_campaign: float | None, name: str = "noise"
) -> CellComparison:
    """Make a cell's comparison of one evaluation."""
    one = EvaluationComparison(
        evaluation=name, cases=cases, only_first=only_first, only_second=only_second, p=p, p_holm=p
    )
    if p_campaign is not None:
        one.p_campaign = p_campaign
    return CellComparison(cell=index, subject="m", concept="moon", audits=AuditComparison(evaluations=[one]))


_BOUND = st.floats(-0.5, 1.2)
_BOUNDS = st.tuples(_BOUND, _BOUND).map(lambda pair: (min(pair), max(pair)))


@st.composite
def evaluations(draw: st.DrawFn, name: str) -> EvaluationResult:
    """Draw a result of any outcome."""
    return evaluation(
        name,
        *draw(_BOUNDS),
        outcome=draw(st.sampled_from(Outcome.values())),
        hits=draw(st.integers(0, 24)),
        control=draw(st.sampled_from(ControlKind.values()[1:])),
    )


@st.composite
def verdicts(draw: st.DrawFn, *, sides: bool = True) -> Verdict:
    """Draw a verdict, with a second one on the deployed model at times."""
    made = verdict(
        draw(st.sampled_from(Conclusion.values())),
        *[draw(evaluations(f"e{index}")) for index in range(draw(st.integers(0, 2)))],
        destruction=draw(st.none() | _BOUNDS),
        damage=draw(_BOUNDS),
        interference=draw(st.none() | _BOUNDS),
    )
    if sides and draw(st.booleans()):
        made.deployed.CopyFrom(draw(verdicts(sides=False)))
    return made


@st.composite
def comparisons(draw: st.DrawFn, index: int) -> CellComparison:
    """Draw a cell's comparison."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return CellComparison(cell=index, problem="the first campaign has no such cell")
    p = draw(st.floats(1e-6, 1))
    made = compared(
        index,
        draw(st.integers(0, 24)),
        draw(st.integers(0, 12)),
        draw(st.integers(0, 12)),
        p,
        draw(st.none() | st.floats(p, 1)),
    )
    if kind == 1:
        made.audits.incomparable.append(Incomparable(what="judge"))
    if kind == 2:
        made.audits.evaluations[0].incomparable.append(Incomparable(what="parameter draws"))
    if kind == 3:
        made.audits.only_in_first.append("tracing")
    return made


@st.composite
def campaigns(draw: st.DrawFn) -> tuple[list[CampaignReportCell], list[CellComparison]]:
    """Draw the cells of a campaign with their comparisons."""
    cells = [
        cell(index, draw(st.none() | verdicts()), concept=draw(st.sampled_from(["moon", "ring"])))
        for index in range(draw(st.integers(0, 4)))
    ]
    return cells, [draw(comparisons(one.index)) for one in cells if draw(st.booleans())]


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    """Draw a gate that asks something."""
    limits = {
        "worst_conclusion": st.sampled_from([REMOVED, AVOIDED, NOT_ERASED]),
        "excess": st.floats(0.01, 0.99),
        "least_destruction": st.floats(0.01, 1),
        "general_damage": st.floats(0.01, 1),
        "interference": st.floats(0.01, 0.99),
        "no_worse_than": st.just("c1"),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(limits)), min_size=1))
    gate = Gate(**{name: draw(limits[name]) for name in sorted(chosen)})
    if gate.no_worse_than and draw(st.booleans()):
        gate.alpha = draw(st.floats(0.001, 0.5))
    gate.undecided = draw(st.integers(0, 3))
    if draw(st.booleans()):
        gate.concepts.append("moon")
    return gate
