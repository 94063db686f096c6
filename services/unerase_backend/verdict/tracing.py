"""The curves from the reference to the subject: the observations at each strength become one point.

Detections under the plain prompt, the selector's similarity and the judge's labels are computed over the pictures made
at that strength. Destruction, general damage and lost pull come from `measures.mechanisms` with strength 0 as the
reference, paired by picture, with the same resamples at every strength.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from unerase.v1.types_pb2 import Observation
from unerase.v1.verdicts_pb2 import TracingPoint, TracingResult
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict.alternatives import label_shares
from unerase_backend.verdict.draws import JUDGE, is_scored, rate_of
from unerase_backend.verdict.measures import Mechanisms, estimate, losses_of, mean_similarity, mechanisms

PICTURES, LOSSES = "strength@", "likelihood@"

Losses = dict[tuple[str, int], tuple[float, float]]


def tracing(observations: Sequence[Observation], concept: str, seed_base: int) -> TracingResult | None:
    """Return the curves, or None if nothing was observed; `concept` tells the concept's pictures from others."""
    pictures: dict[float, list[Observation]] = defaultdict(list)
    losses: dict[float, Losses] = defaultdict(dict)
    for observation in sorted(observations, key=lambda each: (each.concept, each.case_index, each.variant)):
        if observation.arm.startswith(PICTURES):
            pictures[float(observation.arm.removeprefix(PICTURES))].append(observation)
        elif (found := losses_of(observation, pulled=observation.concept == concept)) is not None:
            strength = float(observation.arm.removeprefix(LOSSES))
            losses[strength][observation.concept, observation.case_index] = found
    if not pictures:
        return None
    points = []
    for strength in sorted(pictures):
        scored = [observation for observation in pictures[strength] if is_scored(observation)]
        point = TracingPoint(
            strength=strength,
            detected=rate_of(
                sum(observation.judgements[JUDGE].detected for observation in scored),
                len(scored),
                len(pictures[strength]) - len(scored),
            ),
            similarity=mean_similarity(scored),
            labels=label_shares(scored),
        )
        place = _place(losses[strength], losses[0.0], concept, seed_base)
        if place is not None:
            point.destruction.CopyFrom(estimate(place.destruction, place.destruction_draws))
            point.general_damage.CopyFrom(estimate(place.general_damage, place.general_damage_draws))
            if place.lost_pull_draws is not None:
                point.lost_pull.CopyFrom(estimate(place.lost_pull, place.lost_pull_draws))
        points.append(point)
    return TracingResult(points=points)


def _place(
    losses: Mapping[tuple[str, int], tuple[float, float]],
    start: Mapping[tuple[str, int], tuple[float, float]],
    concept: str,
    seed_base: int,
) -> Mechanisms | None:
    paired = sorted(losses.keys() & start.keys())
    of_concept = [picture for picture in paired if picture[0] == concept]
    others = [picture for picture in paired if picture[0] != concept]
    if not of_concept or not others:
        return None
    return mechanisms(
        np.array([losses[picture] for picture in of_concept]),
        np.array([start[picture] for picture in of_concept]),
        np.array([losses[picture][0] for picture in others]),
        np.array([start[picture][0] for picture in others]),
        np.random.default_rng(derive_seed(seed_base, "verdict", "tracing")),
    )
