"""The results of an evaluation's arms: the rates of their single draws, and of the best draw of each case."""

import math

import numpy as np

from unerase.v1.types_pb2 import ControlKind
from unerase.v1.verdicts_pb2 import ArmResult, Estimate, Interval, JudgeQuality, Rate
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import statistics
from unerase_backend.verdict.draws import CONTROL, REFERENCE, SUBJECT, Bools, Draws
from unerase_backend.verdict.excess import compare_pairs, own_rate
from unerase_backend.verdict.figures import Figures


def arms_of(figures: Figures, tolerance: float, seed_base: int, quality: JudgeQuality | None) -> list[ArmResult]:
    """Return the result of each arm, in order; `quality` is the judge's, for rates that it alone decides."""
    arms = []
    for arm in sorted({arm for arm, _ in figures.columns}):
        columns = np.array([name == arm for name, _ in figures.columns], bool)
        result = ArmResult(arm=arm, deciding=arm in figures.deciding_arms)
        for role, target in ((SUBJECT, result.subject), (REFERENCE, result.reference), (CONTROL, result.control)):
            if role not in figures.draws:
                continue
            draws = figures.draws[role].of(columns)
            result.draws = max(result.draws, draws.budget)
            seed = derive_seed(seed_base, "verdict", "rogan-gladen", figures.description.name, arm, role)
            # The judge's quality was measured on the concept's pictures, not on the placebo's.
            placebo = figures.control_kind == ControlKind.CONTROL_KIND_PLACEBO and role == CONTROL
            measured = None if placebo or draws.both else quality
            target.CopyFrom(_draw_rate(draws, measured, seed))
        if result.draws > 1:
            best = {SUBJECT: result.subject_best, REFERENCE: result.reference_best, CONTROL: result.control_best}
            for role, draws in figures.draws.items():
                best[role].CopyFrom(draws.of(columns).best_of(result.draws).rate())
        result.uninformative = result.deciding and not _tells(figures, columns, tolerance)
        arms.append(result)
    return arms


def _draw_rate(draws: Draws, quality: JudgeQuality | None, seed: int) -> Rate:
    """Return the rate of single draws; the draws of a case are a cluster."""
    hits, scored = (draws.detected & draws.scored).sum(axis=1), draws.scored.sum(axis=1)
    sample = statistics.effective_sample(hits, scored)
    lower, upper = statistics.wilson(sample.hits, sample.size)
    rate = Rate(
        hits=int(hits.sum()),
        cases=int(scored.sum()),
        unscored=int((draws.exists & ~draws.scored).sum()),
        excluded=int(draws.excluded.sum()),
        withheld=int(draws.withheld.sum()),
        wilson=Interval(lower=float(lower), upper=float(upper)),
    )
    if quality is not None and sample.size and quality.sensitivity.cases and quality.specificity.cases:
        sensitivity = quality.sensitivity.hits, quality.sensitivity.cases
        specificity = quality.specificity.hits, quality.specificity.cases
        value = float(
            statistics.rogan_gladen(sample.rate, sensitivity[0] / sensitivity[1], specificity[0] / specificity[1])
        )
        if math.isfinite(value):
            corrected = statistics.rogan_gladen_interval(
                (sample.hits, sample.size), sensitivity, specificity, np.random.default_rng(seed)
            )
            rate.corrected.CopyFrom(Estimate(value=value, interval=Interval(lower=corrected[0], upper=corrected[1])))
    return rate


def _tells(figures: Figures, columns: Bools, tolerance: float) -> bool:
    """Whether the reference's lower bound in an arm is above the control's rate or, without a control, the tolerance.

    As for the evaluation as a whole, over the scored cases.
    """
    best = {role: draws.of(columns).best_of(int(columns.sum())) for role, draws in figures.draws.items()}
    if CONTROL in best:
        return bool(compare_pairs(best[REFERENCE], best[CONTROL]).lower[0] > 0)
    return bool(own_rate(best[REFERENCE]).lower[0] > tolerance)
