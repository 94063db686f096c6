"""What a model makes in place of the concept: the labels of its pictures, their entropy, and how far they spread.

The judge's first choice is the label l for n_l of n pictures, and m labels occur. In bits,

    entropy = - sum over l of (n_l / n) log2(n_l / n) + (m - 1) / (2 n ln 2),

This is the plug-in estimate with the correction of Miller (1955) and Madow for its downward bias. Its interval is the
bootstrap's spread: the entropies of the resamples, corrected in the same way and shifted so that their mean is the
estimate. The plain percentile interval would lie too low, because resamples contain even fewer labels. If all pictures
have one label, the interval has no width.

With d_i the mean cosine distance of picture i to the n - 1 others, the dispersion is the mean of d_i, which is the mean
over all pairs. It is a U-statistic of degree 2, and its first-order (Hajek) projection counts each d_i twice. The
bootstrap's spread of the mean of d_i is therefore doubled around the estimate.

The bootstrap resamples cases; the draws of a case stay together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unerase.v1.types_pb2 import Observation
from unerase.v1.verdicts_pb2 import Alternatives, AlternativesResult, Estimate, Interval, LabelShare, Neighbour
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import statistics
from unerase_backend.verdict.draws import JUDGE, ROLES, is_scored, is_withheld
from unerase_backend.verdict.measures import RESAMPLES

Floats = NDArray[np.float64]

DISTANCE = "distance"
SIMILARITY = "similarity:"
GREATEST_DISTANCE = 2.0


def alternatives(observations: Sequence[Observation], seed_base: int) -> AlternativesResult | None:
    """Return what each model makes in the concept's place; None if nothing was observed."""
    # Sorted, because sums of floats depend on the order.
    ordered = sorted(observations, key=lambda each: (each.case_index, each.arm, each.variant))
    models = [_of_model(role, [each for each in ordered if each.role == role], seed_base) for role in ROLES]
    found = [model for model in models if model.pictures or model.unscored or model.withheld]
    return AlternativesResult(models=found) if found else None


def label_shares(observations: Iterable[Observation]) -> list[LabelShare]:
    """Return the judge's first choices for scored pictures: the most frequent first, ties by name."""
    by_label: dict[str, list[Observation]] = defaultdict(list)
    for observation in observations:
        by_label[observation.judgements[JUDGE].label].append(observation)
    return [
        LabelShare(label=label, pictures=len(labelled), picture_digest=min(labelled, key=_shown_first).picture_digest)
        for label, labelled in sorted(by_label.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def entropy(counts: Floats) -> Floats:
    """Return the corrected entropy in bits of counts, (..., labels) -> (...); every row has at least one count."""
    totals = counts.sum(axis=-1)
    shares = counts / totals[..., None]
    terms = np.where(shares > 0, shares * np.log2(np.where(shares > 0, shares, 1.0)), 0.0)
    seen: Floats = np.count_nonzero(counts, axis=-1).astype(float)
    corrected: Floats = -terms.sum(axis=-1) + (seen - 1) / (2 * totals * np.log(2))
    return corrected


def _of_model(role: int, observations: Sequence[Observation], seed_base: int) -> Alternatives:
    scored = [observation for observation in observations if is_scored(observation)]
    result = Alternatives(
        role=role,  # type: ignore[arg-type]
        pictures=len(scored),
        unscored=len(observations) - len(scored) - sum(map(is_withheld, observations)),
        withheld=sum(map(is_withheld, observations)),
        labels=label_shares(scored),
        neighbours=_neighbours(scored),
    )
    if not scored:
        return result
    # Every model gets the same resamples, so that equal models have equal intervals.
    generator = np.random.default_rng(derive_seed(seed_base, "verdict", "alternatives"))
    cases = sorted({observation.case_index for observation in scored})
    weights = generator.multinomial(len(cases), [1 / len(cases)] * len(cases), size=RESAMPLES).astype(float)
    rows = {case: row for row, case in enumerate(cases)}
    columns = {share.label: column for column, share in enumerate(result.labels)}
    counts = np.zeros((len(cases), len(columns)))
    for observation in scored:
        counts[rows[observation.case_index], columns[observation.judgements[JUDGE].label]] += 1
    value, draws = float(entropy(counts.sum(axis=0))), entropy(weights @ counts)
    result.entropy.CopyFrom(_around(value, draws - draws.mean(), most=np.inf))
    distances = np.array([observation.measures.get(DISTANCE, np.nan) for observation in scored])
    if np.isfinite(distances).all():
        value, draws = float(distances.mean()), _resampled_mean(distances, scored, rows, weights)
        result.dispersion.CopyFrom(_around(value, 2 * (draws - value), most=GREATEST_DISTANCE))
    return result


def _resampled_mean(
    values: Floats, observations: Sequence[Observation], rows: Mapping[int, int], weights: Floats
) -> Floats:
    sums, sizes = np.zeros(len(rows)), np.zeros(len(rows))
    for value, observation in zip(values, observations, strict=True):
        sums[rows[observation.case_index]] += value
        sizes[rows[observation.case_index]] += 1
    means: Floats = (weights @ sums) / (weights @ sizes)
    return means


def _around(value: float, deviations: Floats, most: float) -> Estimate:
    bounds = value + np.quantile(deviations, [statistics.ALPHA / 2, 1 - statistics.ALPHA / 2])
    lower, upper = np.clip(bounds, 0.0, most)
    return Estimate(value=value, interval=Interval(lower=float(lower), upper=float(upper)))


def _neighbours(scored: Sequence[Observation]) -> list[Neighbour]:
    similarities: dict[str, list[float]] = defaultdict(list)
    for observation in scored:
        for name, similarity in observation.measures.items():
            if name.startswith(SIMILARITY):
                similarities[name.removeprefix(SIMILARITY)].append(similarity)
    means = {concept: float(np.mean(found)) for concept, found in similarities.items()}
    return [
        Neighbour(concept=concept, similarity=mean)
        for concept, mean in sorted(means.items(), key=lambda item: (-item[1], item[0]))
    ]


def _shown_first(observation: Observation) -> tuple[float, int, int]:
    return -observation.judgements[JUDGE].label_score, observation.case_index, observation.variant
