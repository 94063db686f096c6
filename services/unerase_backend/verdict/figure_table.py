"""A table of a measure's figures: their mean for each model.

It serves measures that the verdict does not otherwise know. A figure is a number in `Observation.measures`. An
observation with judgements also has the figure "detected", the judge's decision as 1 or 0. The draws of a case are
averaged. The mean over cases has the percentile interval of a bootstrap that resamples cases.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from unerase.v1.types_pb2 import EvaluationDescription, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import FigureMean, MeasuredFigure, MeasureResult
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import statistics
from unerase_backend.verdict.draws import CONTROL, JUDGE, REFERENCE, SUBJECT, UNSCORED_LIMIT, is_scored, is_withheld
from unerase_backend.verdict.measures import estimate

DETECTED = "detected"

Row = tuple[str, str, str]
"""Arm, concept and figure."""
ByCase = Mapping[int, Sequence[float]]


def figure_table(
    description: EvaluationDescription, observations: Sequence[Observation], seed_base: int
) -> MeasureResult:
    """Return the table of a measure."""
    rows: dict[Row, dict[int, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    # Sorted, because sums of floats depend on the order.
    for observation in sorted(observations, key=lambda each: (each.case_index, each.variant)):
        for figure, value in _figures(observation):
            rows[observation.arm, observation.concept, figure][observation.role][observation.case_index].append(value)
    # Every model gets the same resamples, so that equal models have equal intervals.
    seed = derive_seed(seed_base, "verdict", "figure table", description.name)
    return MeasureResult(
        name=description.name,
        title=description.title,
        figures=[_row(row, by_role, seed) for row, by_role in sorted(rows.items())],
        observations=len(observations),
        unscored=_unscored(observations),
        withheld=sum(map(is_withheld, observations)),
    )


def has_usable_figures(observations: Sequence[Observation]) -> bool:
    """Whether a measure has observations, and at most `UNSCORED_LIMIT` of those not excluded are unscored."""
    kept = sum(not _is_excluded(observation) for observation in observations)
    return kept > 0 and _unscored(observations) / kept <= UNSCORED_LIMIT


def _unscored(observations: Sequence[Observation]) -> int:
    return sum(not (_is_usable(observation) or _is_excluded(observation)) for observation in observations)


def _is_excluded(observation: Observation) -> bool:
    return observation.status in (SampleStatus.SAMPLE_STATUS_EXCLUDED, SampleStatus.SAMPLE_STATUS_NOT_APPLICABLE)


def _is_usable(observation: Observation) -> bool:
    return any(True for _ in _figures(observation))


def _figures(observation: Observation) -> Iterator[tuple[str, float]]:
    if is_withheld(observation):
        yield DETECTED, 0.0
    if observation.status != SampleStatus.SAMPLE_STATUS_SCORED:
        return
    yield from ((name, value) for name, value in sorted(observation.measures.items()) if math.isfinite(value))
    if is_scored(observation) and DETECTED not in observation.measures:
        yield DETECTED, float(observation.judgements[JUDGE].detected)


def _row(row: Row, by_role: Mapping[int, ByCase], seed: int) -> MeasuredFigure:
    arm, concept, figure = row
    measured = MeasuredFigure(arm=arm, concept=concept, figure=figure)
    for role, target in ((SUBJECT, measured.subject), (REFERENCE, measured.reference), (CONTROL, measured.control)):
        if role in by_role:
            target.CopyFrom(_mean(by_role[role], seed))
    return measured


def _mean(by_case: ByCase, seed: int) -> FigureMean:
    values = np.array([[np.mean(by_case[case])] for case in sorted(by_case)])
    draws = statistics.resampled_means(values, np.random.default_rng(seed))[:, 0]
    return FigureMean(mean=estimate(float(values.mean()), draws), cases=len(values))
