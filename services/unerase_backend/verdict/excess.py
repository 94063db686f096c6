"""The excess of one model's detections over another's, its bounds and its p, for each way to count doubtful cases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase.v1.verdicts_pb2 import Excess, Interval
from unerase_backend.verdict import paired, sequential, statistics
from unerase_backend.verdict.draws import Cases

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """One model's detections compared with the control's, or its own rate where there is nothing to compare with.

    Each array has three figures: the first over the scored cases, the second with every doubtful case counted against
    the first model, the third with every doubtful case counted in its favour.
    """

    value: float
    only_first: Counts
    only_second: Counts
    cases: Counts
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    p: NDArray[np.float64]
    paired: bool
    tested: bool = True
    """There is a test of the excess; False for a model's own rate."""

    def message(self, p_holm: float) -> Excess:
        """Return the comparison as the message that the report holds."""
        # How far under its own rate the excess is, nobody knows without a control.
        return Excess(
            value=self.value,
            bounds=Interval(lower=self.lower[0] if self.tested else 0, upper=self.upper[0]),
            bounds_with_unscored=Interval(lower=self.lower[1] if self.tested else 0, upper=self.upper[2]),
            only_first=int(self.only_first[0]) if self.paired else 0,
            only_second=int(self.only_second[0]) if self.paired else 0,
            p=self.p[0],
            p_holm=p_holm,
        )


WAYS: tuple[tuple[bool | None, bool | None], ...] = ((None, None), (False, True), (True, False))
"""How doubtful cases of the first and of the second model are counted, in the order of Comparison's figures."""


def compare_pairs(first: Cases, second: Cases, *, anytime: bool = False) -> Comparison:
    """Compare two models over the same cases; with `anytime`, bounds and p hold at every look."""
    figures = []
    for first_way, second_way in WAYS:
        first_detected, first_counts = first.counted(first_way)
        second_detected, second_counts = second.counted(second_way)
        both = first_counts & second_counts
        figures.append(
            (
                int((first_detected & ~second_detected & both).sum()),
                int((~first_detected & second_detected & both).sum()),
                int(both.sum()),
            )
        )
    only_first, only_second, cases = np.array(figures, np.int64).T
    value = float(only_first[0] - only_second[0]) / max(int(cases[0]), 1)
    if anytime:
        lower, upper = sequential.anytime_bounds(only_first, only_second, cases)
        p = sequential.anytime_p(only_first, only_second)
    else:
        lower, upper = paired.excess_bounds(only_first, only_second, cases)
        p = statistics.mcnemar_p(only_first, only_second)
    return Comparison(value, only_first, only_second, cases, lower, upper, p, paired=True)


def compare_with_pictures(model: Cases, false_positives: int, pictures: int) -> Comparison:
    """Compare single draws with the judges' false positives on pictures without the concept (unpaired).

    The upper bound is that of the model's own rate, which needs no pictures and is the tighter one for good judges.
    """
    own = own_rate(model)
    lower, _ = statistics.unpaired_bounds(own.only_first, own.cases, false_positives, pictures)
    value = own.value - false_positives / pictures
    p = statistics.fisher_p(own.only_first, own.cases, false_positives, pictures)
    second = np.full(3, false_positives)
    return Comparison(value, own.only_first, second, own.cases, lower, own.upper, p, paired=False)


def own_rate(model: Cases, *, anytime: bool = False) -> Comparison:
    """Return a model's own rate with its one-sided bounds: its excess over whatever control is at most that.

    With `anytime` the bounds hold at every look: those of the excess over a control that shows nothing.
    """
    figures = []
    for way, _ in WAYS:
        detected, counts = model.counted(way)
        figures.append((int((detected & counts).sum()), int(counts.sum())))
    hits, cases = np.array(figures, np.int64).T
    if anytime:
        lower, upper = sequential.anytime_bounds(hits, 0, cases)
    else:
        lower, upper = statistics.clopper_pearson_lower(hits, cases), statistics.clopper_pearson_upper(hits, cases)
    value = float(hits[0]) / max(int(cases[0]), 1)
    return Comparison(value, hits, np.zeros(3, np.int64), cases, lower, upper, np.ones(3), paired=False, tested=False)
