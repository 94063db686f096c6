"""Which cases of two audits are paired, and how each is decided: as in a verdict."""

import pytest

from support.compared_by_hand import WITHHELD, Audit, compared, only, plain, sample
from unerase.v1.types_pb2 import ModelRole, SampleStatus
from unerase_backend.verdict import sequential


def test_discordant_cases_are_counted_and_named() -> None:
    one = only(compared(plain(True, True, False, False, True), plain(True, False, True, True, True)))
    assert (one.cases, one.only_first, one.only_second, one.unpaired) == (5, 1, 2, 0)
    assert (list(one.only_first_cases), list(one.only_second_cases)) == ([1], [2, 3])
    assert one.difference.value == pytest.approx(1 / 5)


def test_the_rates_difference_is_that_of_the_verdicts_rates() -> None:
    first, second = plain(*[True] * 6, *[False] * 18), plain(*[False] * 10, *[True] * 14)
    before, after = (audit.recorded().content.verdict.evaluations[0].subject for audit in (first, second))
    value = after.hits / after.cases - before.hits / before.cases
    assert only(compared(first, second)).difference.value == pytest.approx(value)


def test_unscored_cases_are_unpaired_and_withheld_ones_not_shown() -> None:
    one = only(compared(plain(True, None, True, None, True), plain(WITHHELD, True, WITHHELD, None, True)))
    assert (one.cases, one.only_first, one.only_second, one.unpaired) == (3, 2, 0, 1)


def test_excluded_cases_are_out() -> None:
    first, second = plain(True, True, True), plain(False, False, False)
    for observation in first.observations:
        if observation.case_index == 1:
            observation.status = SampleStatus.SAMPLE_STATUS_EXCLUDED
    one = only(compared(first, second))
    assert (one.cases, list(one.only_first_cases)) == (2, [0, 2])
    assert one.unpaired == 1


def test_the_selector_picks_the_draw_and_both_judges_decide_it() -> None:
    def audit(*draws: tuple[float, bool, bool]) -> Audit:
        made = Audit(cases=1).evaluation("noise-based", [False])
        made.observations = [one for one in made.observations if one.role != ModelRole.MODEL_ROLE_SUBJECT]
        for variant, (selector, judge, second) in enumerate(draws):
            one = sample("noise-based", 1, 0, judge, arm="noise", variant=variant, selector=selector)
            one.judgements[2].detected = second
            made.observations.append(one)
            for role in (2, 3):
                if variant:
                    made.observations.append(sample("noise-based", role, 0, False, arm="noise", variant=variant))
        return made

    shown, not_picked, by_one_judge = (
        audit((0.9, True, True), (0.1, False, False)),
        audit((0.1, True, True), (0.9, False, False)),
        audit((0.9, True, False), (0.1, True, True)),
    )
    assert only(compared(not_picked, shown)).only_second == 1
    assert only(compared(by_one_judge, shown)).only_second == 1
    assert only(compared(not_picked, by_one_judge)).only_second == 0
    shown.spec_fields = by_one_judge.spec_fields = {"decided_by": "DECIDED_BY_JUDGE"}
    assert only(compared(by_one_judge, shown)).only_second == 0


def test_cases_after_an_early_stop_are_unpaired() -> None:
    first = Audit(sequential=True).evaluation("noise-based", [False] * 21)
    second = Audit(sequential=True).evaluation("noise-based", [True] * 9)
    one = only(compared(first, second))
    assert one.anytime
    assert (one.cases, one.only_first, one.only_second, one.unpaired) == (9, 0, 9, 12)
    assert one.p == pytest.approx(2 * float(sequential.anytime_p(9, 0)))
    lower, upper = sequential.anytime_bounds(9, 0, 9, 0.025)
    assert (one.difference.interval.lower, one.difference.interval.upper) == (float(lower), float(upper))


def test_an_evaluation_that_cannot_stop_has_mcnemars_p_in_a_sequential_audit_too() -> None:
    first, second = (Audit(sequential=True).hits("diffusion-completion", hits) for hits in (2, 20))
    assert not only(compared(first, second)).anytime
