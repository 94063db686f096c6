"""Two campaigns: cells are matched by their names, Holm's correction is over all of them, and little is kept."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compared_by_hand import Audit
from unerase.v1.comparisons_pb2 import AuditComparison, CampaignComparison, CellComparison, Change, EvaluationComparison
from unerase_backend.comparison import CellSide, Family, Totals, compare_cells, is_changed
from unerase_backend.comparison.campaigns import MOST_NAMED
from unerase_backend.verdict import statistics

Pair = tuple[CellSide | None, CellSide | None]


def side(index: int, subject: str, concept: str, audit: Audit | None, problem: str = "") -> CellSide:
    if audit is not None:
        audit.subject = subject
    return CellSide(index, subject, concept, audit.recorded(f"a{index}") if audit is not None else None, problem)


def audit(*hits: int, digest: str = "d-subject", cases: int = 24) -> Audit:
    made = Audit(cases=cases, digest=digest)
    for name, count in zip(("standard-prompt", "noise-based", "diffusion-completion"), hits, strict=False):
        made.hits(name, count)
    return made


def both(pairs: list[Pair]) -> tuple[list[CellComparison], CampaignComparison]:
    """Compare in two passes, as the module says."""
    family = Family()
    compared = [compare_cells(before, after) for before, after in pairs if after is not None]
    for cell in compared:
        family.add(cell)
    totals = Totals("c1", "c2", family)
    for before, after in pairs:
        if before is not None and after is None:
            totals.add_only_in_first(before.subject, before.concept)
        if before is None and after is not None:
            totals.add_only_in_second(after.subject, after.concept)
    cells = [family.adjusted(cell) for cell in compared]
    for cell in cells:
        totals.add(cell)
    return cells, totals.message()


def kept(index: int) -> Pair:
    """A cell of a model that stayed as it was."""
    return tuple(side(index, f"kept-{index}", "moon", audit(3, 4, 5)) for _ in range(2))  # type: ignore[return-value]


def test_one_replaced_model_is_what_changed() -> None:
    replaced = side(0, "uce", "moon", audit(0, 0, 0)), side(0, "uce", "moon", audit(20, 3, 0, digest="d-new"))
    cells, total = both([replaced, kept(1), kept(2)])
    assert [cell.replaced for cell in cells] == [True, False, False]
    assert [cell.audits.change for cell in cells] == [Change.CHANGE_WORSE, Change.CHANGE_SAME, Change.CHANGE_SAME]
    assert (total.compared, total.worse, total.same, total.replaced, total.conclusions_changed) == (3, 1, 2, 1, 1)
    assert (total.tests, total.discordant_needed) == (3, 7)
    assert total.statement == (
        "Of 3 compared cells, 1 worse and 2 unchanged to within the tolerance. In 1 cell the subject was replaced, and "
        "1 conclusion changed. A change is significant among 3 tests from 7 cases on that only one of the two shows."
    )
    assert "only now" in cells[0].audits.statement
    assert "Holm over the cells" in cells[0].audits.statement


def test_the_correction_is_holms_over_every_cell_that_changed() -> None:
    pairs = [
        (side(index, f"m{index}", "moon", audit(0, 0)), side(index, f"m{index}", "moon", audit(*hits, digest="d-new")))
        for index, hits in enumerate([(12, 0), (7, 9), (0, 1)])
    ]
    cells, _ = both([*pairs, kept(3)])
    raw = [one.p for cell in cells[:3] for one in cell.audits.evaluations]
    expected = statistics.holm(raw).tolist()
    assert [one.p_campaign for cell in cells[:3] for one in cell.audits.evaluations] == pytest.approx(expected)
    # Two audits that are one computation test nothing.
    assert not any(one.HasField("p_campaign") for one in cells[3].audits.evaluations)


def test_a_change_alone_is_none_among_many_tests() -> None:
    """7 discordant cases are significant in one audit, and not among nine."""
    changed = side(0, "m", "moon", audit(0)), side(0, "m", "moon", audit(7, digest="d-new"))
    others = [
        (side(k, f"m{k}", "moon", audit(5)), side(k, f"m{k}", "moon", audit(5, digest="d-new"))) for k in range(1, 9)
    ]
    (alone,), _ = both([changed])
    among, total = both([changed, *others])
    assert alone.audits.change == Change.CHANGE_WORSE
    assert among[0].audits.change == Change.CHANGE_UNSETTLED
    assert total.worse == 0
    assert among[0].audits.evaluations[0].p_holm < 0.05 < among[0].audits.evaluations[0].p_campaign


def test_cells_without_a_counterpart_or_a_report_are_named() -> None:
    pairs: list[Pair] = [
        (None, side(0, "new", "moon", audit(1))),
        (side(1, "old", "moon", audit(1)), None),
        (side(2, "m", "moon", audit(1)), side(2, "m", "moon", None, "failed: the model could not be loaded")),
        (side(3, "n", "moon", None), side(3, "n", "moon", audit(1))),
        (side(4, "o", "moon", audit(1)), side(4, "o", "moon", audit(1, cases=23))),
    ]
    cells, total = both(pairs)
    assert [cell.problem for cell in cells] == [
        "the first campaign has no such cell",
        "the cell of the second campaign has no report: failed: the model could not be loaded",
        "the cell of the first campaign has no report: it has not ended",
        "",
    ]
    assert list(total.only_in_first) == ["old x moon"]
    assert list(total.only_in_second) == ["new x moon"]
    assert (total.compared, total.without_comparison) == (0, 4)
    assert total.statement == "No cell of the two campaigns can be compared."
    assert [cell.cell for cell in cells] == [0, 2, 3, 4]


def test_what_did_not_change_can_be_left_out() -> None:
    replaced = side(0, "m", "moon", audit(4)), side(0, "m", "moon", audit(4, digest="d-new"))
    cells, _ = both([kept(1), replaced, (None, side(2, "n", "moon", audit(1)))])
    assert [is_changed(cell) for cell in cells] == [False, True, True]


def test_another_basis_makes_kept_models_tests() -> None:
    """What the numerics did to models that nobody replaced is a finding like any other."""
    second = audit(9)
    second.manifest.numerics_profile = "bfloat16 cuda"
    ((cell,), total) = both([(side(0, "m", "moon", audit(0)), side(0, "m", "moon", second))])
    assert not cell.replaced
    assert cell.audits.evaluations[0].HasField("p_campaign")
    assert total.tests == 1


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=60))
@settings(deadline=None)
def test_the_family_corrects_as_holm_does(values: list[float]) -> None:
    family = Family()
    for p in values:
        family.add(_cell(p))
    expected = statistics.holm(values)
    assert [family.corrected(p) for p in values] == pytest.approx(expected.tolist())


def _cell(*values: float) -> CellComparison:
    evaluations = [EvaluationComparison(p=p, p_holm=p, cases=24) for p in values]
    return CellComparison(replaced=True, audits=AuditComparison(evaluations=evaluations, second_subject_digest="d"))


def test_ten_thousand_cells_keep_their_p_alone() -> None:
    """Eight bytes for each of six evaluations, and as much again for the corrected ones, whatever the cells hold."""
    count = 10_000
    generator = np.random.default_rng(1)

    def cells() -> Iterator[CellComparison]:
        cell = _cell(*[1.0] * 6)
        for _ in range(count):
            for compared in cell.audits.evaluations:
                compared.p = float(generator.random())
            yield cell

    tracemalloc.start()
    family = Family()
    for cell in cells():
        family.add(cell)
    with pytest.raises(ValueError, match="had no p of 2"):
        family.corrected(2.0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(family) == 6 * count
    assert most < 10 * 8 * len(family)


def test_the_names_of_lone_cells_are_bounded() -> None:
    totals = Totals("c1", "c2", Family())
    for index in range(MOST_NAMED + 5):
        totals.add_only_in_first(f"m{index}", "moon")
    message = totals.message()
    assert (len(message.only_in_first), message.only_in_first_cells) == (MOST_NAMED, MOST_NAMED + 5)


def test_cells_are_compared_alone_too() -> None:
    cell = compare_cells(side(0, "m", "moon", audit(0)), side(7, "m", "moon", audit(9)))
    assert (cell.cell, cell.subject, cell.concept) == (7, "m", "moon")
    assert not cell.audits.evaluations[0].HasField("p_campaign")
