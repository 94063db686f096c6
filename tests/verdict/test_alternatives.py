"""What stands in the concept's place: against SciPy, loops, and the laws of entropy and of mean distances."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unerase.v1.types_pb2 import Judgement, ModelRole, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import Alternatives
from unerase_backend.probing.probes.alternatives import mean_distances
from unerase_backend.verdict import measure_wording
from unerase_backend.verdict.alternatives import alternatives, entropy

SUBJECT = ModelRole.MODEL_ROLE_SUBJECT
CONTROL = ModelRole.MODEL_ROLE_CONTROL


def shown(
    label: str,
    case: int,
    *,
    role: int = SUBJECT,
    variant: int = 0,
    score: float = 0.5,
    scored: bool = True,
    **measures: float,
) -> Observation:
    judgements = [Judgement(judge=judge, score=0.5, label=label, label_score=score) for judge in ("clip", "judge", "k")]
    return Observation(
        evaluation="alternatives",
        role=role,
        case_index=case,
        variant=variant,
        status=SampleStatus.SAMPLE_STATUS_SCORED if scored else SampleStatus.SAMPLE_STATUS_UNSCORED,
        judgements=judgements if scored else [],
        picture_digest=f"{label}-{role}-{case}-{variant}",
        measures=measures,
    )


def of(observations: Sequence[Observation], seed_base: int = 1) -> Alternatives:
    result = alternatives(observations, seed_base)
    assert result is not None
    (model,) = result.models
    return model


labels = st.lists(st.sampled_from("abcde"), min_size=1, max_size=40)


@given(labels)
def test_entropy_is_scipys_with_the_correction(seen: list[str]) -> None:
    counts = np.array(list(Counter(seen).values()), float)
    plug_in = float(stats.entropy(counts, base=2))
    corrected = float(entropy(counts))
    assert corrected == pytest.approx(plug_in + (len(counts) - 1) / (2 * len(seen) * math.log(2)))
    assert plug_in <= math.log2(len(counts)) + 1e-9
    assert -1e-9 <= plug_in <= corrected + 1e-9
    # Labels that were never seen do not count.
    assert float(entropy(np.array([*counts, 0.0, 0.0]))) == corrected


@settings(deadline=None, max_examples=25)
@given(labels, st.randoms(use_true_random=False))
def test_the_order_of_observations_changes_nothing(seen: list[str], order: random.Random) -> None:
    observations = [
        shown(label, index // 2, variant=index % 2, distance=0.1 + index / 7, **{"similarity:heart": index / 3})
        for index, label in enumerate(seen)
    ]
    shuffled = list(observations)
    order.shuffle(shuffled)
    assert of(shuffled) == of(observations)


@settings(deadline=None, max_examples=25)
@given(labels)
def test_the_interval_holds_the_entropy(seen: list[str]) -> None:
    estimate = of([shown(label, case) for case, label in enumerate(seen)]).entropy
    assert 0 <= estimate.interval.lower <= estimate.value + 1e-9
    assert estimate.value <= estimate.interval.upper + 1e-9


def test_the_entropys_interval_covers_better_than_percentiles() -> None:
    """Six labels over 24 pictures: the shifted interval falls somewhat short, percentiles of plug-ins far short."""
    shares = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    truth, draws = float(stats.entropy(shares, base=2)), np.random.default_rng(0)
    ours = percentiles = 0
    for index in range(150):
        drawn = draws.choice(6, 24, p=shares)
        interval = of([shown(str(label), case) for case, label in enumerate(drawn)], index).entropy.interval
        ours += interval.lower <= truth <= interval.upper
        counts = (draws.choice(drawn, (200, 24))[:, :, None] == np.arange(6)).sum(axis=1)
        resampled = stats.entropy(counts, base=2, axis=1)
        percentiles += np.quantile(resampled, 0.025) <= truth <= np.quantile(resampled, 0.975)
    assert ours / 150 >= 0.8
    assert ours > percentiles


def test_labels_are_counted_by_the_judge_and_shown_by_its_surest_picture() -> None:
    observations = [
        shown("blob", 0, score=0.6),
        shown("blob", 1, score=0.9),
        shown("moon", 2),
        shown("arrow", 3),
        shown("blob", 4, score=0.9),
        shown("blob", 5, scored=False),
    ]
    model = of(observations)
    assert (model.pictures, model.unscored) == (5, 1)
    assert [(share.label, share.pictures, share.picture_digest) for share in model.labels] == [
        ("blob", 3, f"blob-{SUBJECT}-1-0"),
        ("arrow", 1, f"arrow-{SUBJECT}-3-0"),
        ("moon", 1, f"moon-{SUBJECT}-2-0"),
    ]


def test_neighbours_are_means_the_nearest_first() -> None:
    near = [{"similarity:heart": 0.2, "similarity:moon": 0.5}, {"similarity:heart": 0.4, "similarity:moon": 0.1}]
    model = of([shown("blob", case, **measures) for case, measures in enumerate(near)])
    assert [each.concept for each in model.neighbours] == ["heart", "moon"]
    assert [each.similarity for each in model.neighbours] == pytest.approx([0.3, 0.3])


unit_vectors = st.integers(2, 9).flatmap(
    lambda count: st.lists(
        st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda row: np.linalg.norm(row) > 0.1),
        min_size=count,
        max_size=count,
    )
)


@settings(deadline=None, max_examples=50)
@given(unit_vectors)
def test_the_mean_of_the_mean_distances_is_that_of_all_pairs(rows: list[list[float]]) -> None:
    vectors = [np.array(row) / np.linalg.norm(row) for row in rows]
    pairs = [1 - float(a @ b) for i, a in enumerate(vectors) for b in vectors[:i]]
    distances = mean_distances(np.array(rows))
    assert float(distances.mean()) == pytest.approx(np.mean(pairs), abs=1e-9)
    observations = [shown("blob", case, distance=distance) for case, distance in enumerate(distances.tolist())]
    dispersion = of(observations).dispersion
    assert dispersion.value == pytest.approx(np.mean(pairs), abs=1e-9)
    assert 0 <= dispersion.interval.lower <= dispersion.interval.upper <= 2


def test_the_dispersions_interval_covers_at_about_its_level() -> None:
    """Directions in a plane around an axis; the true mean distance is 1 less the squared length of the mean."""
    draws = np.random.default_rng(3)

    def directions(count: int) -> np.ndarray:
        angles = draws.exponential(0.6, count) * draws.choice([-1, 1], count)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    truth = 1 - float(np.sum(directions(400_000).mean(axis=0) ** 2))
    covered = narrow = 0
    for index in range(200):
        distances = mean_distances(directions(24))
        estimate = of([shown("x", case, distance=d) for case, d in enumerate(distances.tolist())], index).dispersion
        covered += estimate.interval.lower <= truth <= estimate.interval.upper
        # What a bootstrap of the mean alone would claim.
        half = (estimate.interval.upper - estimate.interval.lower) / 4
        narrow += abs(estimate.value - truth) <= half
    assert covered / 200 >= 0.88
    assert narrow / 200 < 0.8


def test_all_draws_of_a_case_are_resampled_together() -> None:
    """Twelve cases, each of one mind over its four draws, are no more than twelve."""
    together = [shown("ab"[case % 2], case, variant=draw, distance=case % 2) for case in range(12) for draw in range(4)]
    apart = [shown("ab"[case % 2], case, distance=case % 2) for case in range(48)]

    def width(observations: Sequence[Observation]) -> float:
        interval = of(observations).dispersion.interval
        return interval.upper - interval.lower

    assert width(together) > 1.5 * width(apart)


def test_each_model_is_on_its_own_and_equal_models_are_equal() -> None:
    pictures = [("blob", 0.3), ("moon", 0.4), ("blob", 0.5)]
    observations = [
        shown(label, case, role=role, distance=distance)
        for role in (CONTROL, SUBJECT)
        for case, (label, distance) in enumerate(pictures)
    ]
    result = alternatives(observations, 7)
    assert result is not None
    subject, control = result.models
    assert (subject.role, control.role) == (SUBJECT, CONTROL)
    assert (subject.entropy, subject.dispersion) == (control.entropy, control.dispersion)
    assert alternatives([], 7) is None


def test_nothing_scored_leaves_counts_alone() -> None:
    model = of([shown("blob", 0, scored=False)])
    assert (model.pictures, model.unscored, len(model.labels)) == (0, 1, 0)
    assert not model.HasField("entropy")
    assert not model.HasField("dispersion")


def test_the_sentence_gives_every_models_figures() -> None:
    observations = [shown("blob", case, distance=0.25) for case in range(3)]
    observations += [shown("moon", 0, role=CONTROL, scored=False)]
    result = alternatives(observations, 1)
    assert result is not None
    assert measure_wording.alternatives_sentence(result) == (
        "alternatives: under the plain prompt the subject shows 'blob' most, in 3 of 3 pictures (entropy of its labels "
        "0.00 bits, 0.00 to 0.00, dispersion 0.25, 0.25 to 0.25); the control's pictures are all unscored."
    )
