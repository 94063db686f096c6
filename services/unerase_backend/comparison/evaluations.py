"""One evaluation of two audits, paired by case.

Of n cases that both audits have scored, b show the concept in the first audit's subject only and c in the second's
only. Each case is decided as the verdict decides it (`verdict/draws.py`), and reference and control take no part.

    difference           (c - b) / n, with Tango's two-sided 95 % score interval (Tango 1998)
    p                    McNemar's exact p, two-sided: min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2)
    bounds               the verdict's exact one-sided 95 % bounds of a paired difference (`verdict/paired.py`)

A sequential audit stops an evaluation as soon as its outcome is settled. Then the number of pairs depends on what they
show, and none of the three would hold. The pairs of both audits come in the order of the cases, and the first audit to
stop does so at a time that depends on earlier cases alone. So p, interval and bounds are those that hold at every look
(`verdict/sequential.py`), the p twice the one-sided one.

A case with an unscored draw is doubtful. As in a verdict, bounds and p are computed with doubtful cases as scored, and
with all of them counted for either audit; the widest bounds and the largest p stand. If these ways do not agree on
which audit shows the concept more often, p is 1.

Sources: McNemar 1947, Psychometrika 12:153; Tango 1998, Statistics in Medicine 17:891.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unerase.v1.comparisons_pb2 import Change, EvaluationComparison
from unerase.v1.types_pb2 import ModelAccess
from unerase.v1.verdicts_pb2 import Estimate, Interval
from unerase_backend.verdict import paired, sequential, statistics
from unerase_backend.verdict.draws import SUBJECT, Cases
from unerase_backend.verdict.excess import compare_pairs
from unerase_backend.verdict.figures import Table

Bools = NDArray[np.bool_]

INTERVAL_ALPHA = statistics.ALPHA / 2
"""The error of each side of a two-sided 95 % interval."""


def compare_tables(first: Table, second: Table) -> EvaluationComparison:
    """Return the figures of one evaluation of two audits, without names, outcomes, Holm's correction and change."""
    # Beyond the last look of the one that stopped first, nothing is paired.
    common = sorted(case for case in {*first.rows} & {*second.rows} if case < _last(first) and case < _last(second))
    before, after = (_of(table, common) for table in (first, second))
    anytime = first.anytime or second.anytime
    figures = compare_pairs(after, before, anytime=anytime)
    only_second, only_first, cases = (
        int(counts[0]) for counts in (figures.only_first, figures.only_second, figures.cases)
    )
    in_both = before.scored & after.scored
    message = EvaluationComparison(
        cases=cases,
        only_first=only_first,
        only_second=only_second,
        only_first_cases=_named(common, before.detected & ~after.detected & in_both),
        only_second_cases=_named(common, after.detected & ~before.detected & in_both),
        unpaired=_unpaired(first, second),
        anytime=anytime,
    )
    if cases:
        p = _two_sided(figures.only_second, figures.only_first, anytime=anytime)
        message.p = p
        message.difference.CopyFrom(difference(only_first, only_second, cases, anytime=anytime))
        message.bounds.CopyFrom(Interval(lower=float(figures.lower.min()), upper=float(figures.upper.max())))
    return message


def difference(only_first: int, only_second: int, cases: int, *, anytime: bool = False) -> Estimate:
    """Return the second rate less the first, with its two-sided 95 % interval."""
    lower, upper = _interval(only_first, only_second, cases, anytime)
    return Estimate(value=(only_second - only_first) / cases, interval=Interval(lower=lower, upper=upper))


# The cells of a campaign share most of their counts.
@lru_cache(maxsize=65_536)
def _interval(only_first: int, only_second: int, cases: int, anytime: bool) -> tuple[float, float]:
    if anytime:
        lower, upper = sequential.anytime_bounds(only_second, only_first, cases, INTERVAL_ALPHA)
        return float(lower), float(upper)
    return (
        -paired.score_limit(only_first, only_second, cases, INTERVAL_ALPHA),
        paired.score_limit(only_second, only_first, cases, INTERVAL_ALPHA),
    )


def two_sided_p(only_first: int, only_second: int, *, anytime: bool = False) -> float:
    """Return the two-sided p that both show the concept equally often: McNemar's exact, or one for every look."""
    of = sequential.anytime_p if anytime else statistics.mcnemar_p
    return min(1.0, 2 * float(min(of(only_first, only_second), of(only_second, only_first))))


def discordant_needed(tests: int, alpha: float = statistics.ALPHA) -> int:
    """Return the fewest discordant cases, all one way, whose p is under alpha as the smallest of `tests`."""
    return statistics.discordant_needed(2 * max(tests, 1), alpha)


def change_of(compared: EvaluationComparison, p: float) -> Change.ValueType:
    """Return the change of an evaluation, given its p after Holm's correction."""
    if not compared.cases:
        return Change.CHANGE_UNSPECIFIED
    if p < statistics.ALPHA:
        return Change.CHANGE_WORSE if compared.difference.value > 0 else Change.CHANGE_BETTER
    widest = max(-compared.bounds.lower, compared.bounds.upper)
    return Change.CHANGE_SAME if widest < compared.tolerance else Change.CHANGE_UNSETTLED


def tables_differ(first: Table, second: Table) -> tuple[list[str], list[str]] | None:
    """Return the arms that decided in either audit if these are not the same, else None.

    An arm decides only where the control has draws in it. An audit without observations says nothing of its arms.
    """
    arms = [
        sorted({arm for (arm, _), decides in zip(table.columns, table.deciding, strict=True) if decides})
        for table in (first, second)
    ]
    return (arms[0], arms[1]) if arms[0] != arms[1] and all(arms) else None


def access_shared(first: ModelAccess.ValueType, second: ModelAccess.ValueType) -> list[ModelAccess.ValueType]:
    """Return the accesses under which two audits can be compared, the stricter first.

    A subject without guards is the same model deployed as by its weights.
    """
    unguarded, both = ModelAccess.MODEL_ACCESS_UNSPECIFIED, ModelAccess.MODEL_ACCESS_BOTH
    if first == second == unguarded:
        return [unguarded]
    sides = (ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS, ModelAccess.MODEL_ACCESS_DEPLOYED)
    return [side for side in sides if all(asked in (unguarded, both, side) for asked in (first, second))]


def _last(table: Table) -> int:
    """Return the number of cases up to which an audit ran an evaluation."""
    return table.run if table.anytime else max([table.run, *(row + 1 for row in table.rows)])


def _of(table: Table, cases: Sequence[int]) -> Cases:
    place = {row: at for at, row in enumerate(table.rows)}
    rows = np.array([place[case] for case in cases], int)
    decided = table.decided[SUBJECT]
    return Cases(
        *(
            each[rows]
            for each in (decided.detected, decided.scored, decided.doubtful, decided.excluded, decided.withheld)
        )
    )


def _named(cases: Sequence[int], chosen: Bools) -> list[int]:
    return [case for case, one in zip(cases, chosen, strict=True) if one]


def _unpaired(first: Table, second: Table) -> int:
    scored = [
        {row for row, one in zip(table.rows, table.decided[SUBJECT].scored, strict=True) if one}
        for table in (first, second)
    ]
    return len(scored[0] ^ scored[1])


def _two_sided(only_first: NDArray[np.int64], only_second: NDArray[np.int64], *, anytime: bool) -> float:
    """Return the largest p over the ways to count doubtful cases; 1 if these disagree on the direction."""
    signs = set(np.sign(only_second - only_first).tolist())
    if len(signs) > 1:
        return 1.0
    return max(two_sided_p(int(b), int(c), anytime=anytime) for b, c in zip(only_first, only_second, strict=True))
