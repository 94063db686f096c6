"""The figures of two audits' measures: the second less the first over the pictures that both have.

Of the likelihood, with r(p) = log(L_subject(empty) / L_reference(empty)) of picture p in one audit and
d(p) = r_second(p) - r_first(p):

    concept's loss    mean of d over the concept's pictures
    general damage    mean of d over the other pictures
    destruction       the concept's loss less the general damage

The interval is the percentile interval of a bootstrap that resamples the concept's pictures and the other pictures
separately, each picture with its errors in both audits (Efron and Tibshirani 1993, chapter 8). Beside one and the same
reference d is log(L_second / L_first): how much likelier the picture was to the first subject.

Of interference, over the pictures of other concepts on which the reference's detection is the same in both audits: what
the second subject lost of them less what the first lost, with Tango's score interval.
"""

from collections.abc import Sequence

import numpy as np

from unerase.v1.comparisons_pb2 import FigureComparison
from unerase.v1.types_pb2 import ModelAccess, Observation
from unerase_backend.comparison.evaluations import difference
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict import measures, statistics
from unerase_backend.verdict.draws import JUDGE, REFERENCE, SUBJECT, is_scored, is_withheld

Picture = tuple[str, str, int]
Draw = tuple[str, int, str, int]

SHOWN, REFERENCED = 0, 1
"""Places of the subject's and the reference's detection."""


def compare_likelihood(
    first: Sequence[Observation], second: Sequence[Observation], seed_base: int
) -> list[FigureComparison]:
    """Return what changed of destruction, the concept's loss and general damage.

    Empty if no picture of the concept, or no other one, was measured for subject and reference in both audits.
    """
    before, after = _log_ratios(first), _log_ratios(second)
    common = sorted(before.keys() & after.keys())
    pictures = {
        "concept": [picture for picture in common if picture[0] == "concept"],
        "other": [picture for picture in common if picture[0] != "concept"],
    }
    if not all(pictures.values()):
        return []
    generator = np.random.default_rng(derive_seed(seed_base, "comparison", "likelihood"))
    values, draws = {}, {}
    for name, chosen in pictures.items():
        ratios = np.array([(before[picture], after[picture]) for picture in chosen])
        values[name] = ratios.mean(axis=0)
        resampled = statistics.resampled_means(ratios, generator, measures.RESAMPLES)
        draws[name] = resampled[:, 1] - resampled[:, 0]
    values["destruction"] = values["concept"] - values["other"]
    draws["destruction"] = draws["concept"] - draws["other"]
    counts = {name: len(chosen) for name, chosen in pictures.items()} | {"destruction": len(common)}
    return [
        FigureComparison(
            figure=figure,
            first=values[name][0],
            second=values[name][1],
            difference=measures.estimate(float(values[name][1] - values[name][0]), draws[name]),
            pictures=counts[name],
        )
        for figure, name in (("destruction", "destruction"), ("concept_loss", "concept"), ("general_damage", "other"))
    ]


def compare_interference(
    first: Sequence[Observation], second: Sequence[Observation], access: ModelAccess.ValueType
) -> FigureComparison | None:
    """Return what changed of the loss on other concepts; None if nothing was scored for all models in both audits."""
    before, after = _detected(first), _detected(second)
    common = [draw for draw in before.keys() & after.keys() if before[draw][REFERENCED] == after[draw][REFERENCED]]
    if not common:
        return None
    lost = sum(before[draw][SHOWN] and not after[draw][SHOWN] for draw in common)
    won = sum(after[draw][SHOWN] and not before[draw][SHOWN] for draw in common)
    return FigureComparison(
        figure="interference",
        first=_loss([before[draw] for draw in common]),
        second=_loss([after[draw] for draw in common]),
        difference=difference(won, lost, len(common)),
        access=access,
        pictures=len(common),
    )


def _log_ratios(observations: Sequence[Observation]) -> dict[Picture, float]:
    """Return log(L_subject / L_reference) under the empty prompt, by the pictures that both have."""
    losses: dict[int, dict[Picture, float]] = {SUBJECT: {}, REFERENCE: {}}
    for observation in observations:
        measured = measures.losses_of(observation, pulled=observation.arm == "concept")
        if observation.role in losses and measured is not None:
            place = observation.arm, observation.concept, observation.case_index
            losses[observation.role][place] = measured[0]
    subject, reference = losses[SUBJECT], losses[REFERENCE]
    return {
        picture: float(np.log(subject[picture] / reference[picture])) for picture in subject.keys() & reference.keys()
    }


def _detected(observations: Sequence[Observation]) -> dict[Draw, tuple[bool, bool]]:
    """Return what the judge says of the subject's and of the reference's picture, by the draws scored for both."""
    detected: dict[int, dict[Draw, bool]] = {SUBJECT: {}, REFERENCE: {}}
    for observation in observations:
        if observation.role in detected and (is_scored(observation) or is_withheld(observation)):
            draw = observation.concept, observation.case_index, observation.arm, observation.variant
            shown = not is_withheld(observation) and observation.judgements[JUDGE].detected
            detected[observation.role][draw] = shown
    subject, reference = detected[SUBJECT], detected[REFERENCE]
    return {draw: (subject[draw], reference[draw]) for draw in subject.keys() & reference.keys()}


def _loss(detected: Sequence[tuple[bool, bool]]) -> float:
    return sum(each[REFERENCED] - each[SHOWN] for each in detected) / len(detected)
