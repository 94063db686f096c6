"""Axes and the placement of labels, as laws; and what the charts draw, read back from their coordinates."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.report_by_hand import around, rate, traced
from unerase.v1.verdicts_pb2 import ArmResult, Estimate, Interval
from unerase_backend.report import charts, plane
from unerase_backend.report.drawing import FAR, Scale, mark
from unerase_backend.report.plane import LINE, Box, Stand, place_labels

NUMBERS = st.floats(-1e3, 1e3)
WITH_HOLES = st.one_of(NUMBERS, st.sampled_from([math.inf, -math.inf, math.nan]))
INSIDE = Box(46, 10, 384, 294)


@settings(deadline=None)
@given(st.lists(WITH_HOLES), st.sampled_from([None, 0.1, 1.0]), st.booleans())
def test_an_axis_holds_its_numbers_in_their_order(numbers: list[float], unit: float | None, zero: bool) -> None:
    scale = Scale.fit(numbers, zero=zero, unit=unit)
    finite = sorted(number for number in numbers if math.isfinite(number))
    places = [scale.place(number) for number in finite]
    assert all(0 < place < 1 for place in places)
    assert places == sorted(places)
    assert scale.place(math.inf) == 1
    assert scale.place(-math.inf) == 0
    far = unit is not None and max(map(abs, finite), default=0) > FAR * unit
    assert (scale.unit is not None) == far
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert (0 in ticks) or not zero
    assert len(ticks) <= 9


def test_a_compressed_axis_has_round_numbers() -> None:
    scale = Scale.fit([-0.05, 9.0], unit=1.0)
    assert scale.ticks() == [0, 1, 2, 5, 10]
    assert Scale.fit([1.4], unit=0.1).ticks() == pytest.approx([0, 0.1, 0.2, 0.5, 1])
    # asinh is odd and grows by log(2) a doubling, far out.
    far = Scale(-1000, 1000, 1.0)
    assert far.place(0) == 0.5
    assert far.place(800) - far.place(400) == pytest.approx(far.place(400) - far.place(200), rel=1e-4)


PLACES = st.tuples(
    st.floats(INSIDE.left, INSIDE.right),
    st.floats(INSIDE.top, INSIDE.bottom),
    st.text("abcdefghijk", min_size=1, max_size=9),
)


@settings(deadline=None)
@given(st.lists(PLACES, max_size=12), st.booleans())
def test_labels_cover_neither_marks_nor_each_other(anchors: list[tuple[float, float, str]], crowded: bool) -> None:
    if crowded:
        anchors = [(60 + x / 50, 30 + y / 50, text) for x, y, text in anchors]
    marks = [Box(x - 7, y - 7, x + 7, y + 7) for x, y, _ in anchors]
    boxes = place_labels(anchors, INSIDE, marks)
    assert len(boxes) == len(anchors)
    for at, box in enumerate(boxes):
        assert box.within(INSIDE)
        assert box.bottom - box.top == pytest.approx(LINE)
        assert not any(box.overlaps(other) for other in [*boxes[:at], *boxes[at + 1 :], *marks])


def test_a_label_keeps_off_lines_where_it_can() -> None:
    (free,) = place_labels([(100, 100, "name")], INSIDE, [])
    line = Box(free.left + 3, INSIDE.top, free.left + 5, INSIDE.bottom)
    (moved,) = place_labels([(100, 100, "name")], INSIDE, [], [line])
    assert not moved.overlaps(line)
    (anyway,) = place_labels([(100, 100, "name")], INSIDE, [], [INSIDE])
    assert anyway == free


def coordinates(drawn: str, kind: str) -> list[tuple[float, float]]:
    """The points of the first line through points of a kind."""
    found = re.search(rf'<polyline class="{kind}" points="([^"]*)"', drawn)
    assert found, kind
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_curves_lie_where_their_figures_are() -> None:
    """Read back from the coordinates: equal steps across, and up by the share of 150 units."""
    points = traced().points
    drawn = dict(charts.tracing(points, (0.1, 0.25)))
    assert next(iter(drawn)) == "Detected under the plain prompt"
    assert list(drawn)[2:] == ["Destruction", "General damage", "Lost pull"]
    line = coordinates(drawn["Detected under the plain prompt"], "curve subject")
    assert [x for x, _ in line] == pytest.approx([46 + 244 * point.strength for point in points], abs=0.1)
    expected = [160 - 150 * point.detected.hits / 24 for point in points]
    assert [y for _, y in line] == pytest.approx(expected, abs=0.1)
    band = re.search(r'<polygon class="band subject" points="([^"]*)"', drawn["Detected under the plain prompt"])
    assert band
    edges = [float(pair.split(",")[1]) for pair in band[1].split()]
    uppers = [160 - 150 * point.detected.wilson.upper for point in points]
    lowers = [160 - 150 * point.detected.wilson.lower for point in points]
    assert edges == pytest.approx(uppers + lowers[::-1], abs=0.1)


def test_without_pull_no_curve_of_it() -> None:
    assert "Lost pull" not in dict(charts.tracing(traced(pull=False).points, (0.1, 0.25)))
    assert charts.tracing([], (0.1, 0.25)) == []


def test_a_curve_is_interrupted_where_nothing_was_measured() -> None:
    arms = [
        (0.0, ArmResult(subject=rate(0, 8))),
        (5.0, ArmResult(subject=rate(4, 8))),
        (9.0, ArmResult(reference=rate(8, 8), subject=rate(0, 0))),
        (20.0, ArmResult(subject=rate(8, 8))),
    ]
    drawn = charts.over_steps("few-shot", arms, "optimisation steps")
    assert "subject 8 of 8 at 20" in drawn
    assert "reference 8 of 8 at 9" in drawn
    assert "nan" not in drawn
    holes = charts.figures("auc", [(10, 0.5), (20, math.nan), (30, 0.75), (40, 0.8)], "step")
    assert [
        len(points.split()) for points in re.findall(r'<polyline class="curve subject" points="([^"]*)"', holes)
    ] == [
        1,
        2,
    ]


def test_the_plane_says_what_it_draws() -> None:
    stands = [
        Stand("UCE", "context", around(0.01, 0.02), around(6.3, 1.5)),
        Stand("never", "control", around(1.37, 0.1), around(1.6, 0.2)),
        Stand("reference", "reference", Estimate(), Estimate()),
        Stand("<s>", "subject", around(0.02, 0.06), around(1.7, 0.3), 3.8, damaged=True),
    ]
    drawn = str(plane.draw(stands, 0.1))
    assert "&lt;s&gt; (subject) at 0.02, 1.70, damaged, loss 3.82; reference (reference) at 0.00, 0.00" in drawn
    assert "UCE (context) at 0.01, 6.30." in drawn
    assert "lost pull (compressed beyond 1)" in drawn
    assert "destruction (compressed beyond 0.1)" in drawn
    assert drawn.count('class="ring') == 1
    assert drawn.count('class="whisker') == 2 * len(stands)
    near = str(plane.draw([stands[2], Stand("s", "subject", around(0.02, 0.06), around(1.7, 0.3))], 0.1))
    assert "compressed" not in near


@pytest.mark.parametrize(
    ("destruction", "damage", "damaged", "second"),
    [
        (0.02, 3.8, True, True),
        (0.02, 0.01, False, False),
        # Within the tolerance of damage, but the two marks are on two sides of the tolerance of destruction.
        (0.02, 0.15, False, True),
        (0.5, 0.15, False, False),
        # Too close to be seen apart.
        (0.5, 0.001, True, False),
        (0.5, math.nan, True, False),
    ],
)
def test_damage_is_drawn_as_a_second_mark(destruction: float, damage: float, damaged: bool, second: bool) -> None:
    """Read back from the coordinates: both marks lie on one axis, at the same height, joined by a line."""
    stand = Stand("s", "subject", around(destruction, 0.01), around(0.9, 0.1), damage, damaged)
    drawn = str(plane.draw([stand], 0.1))
    assert ('<g class="second">' in drawn) == second
    if not second:
        return
    across = re.search(r'<line class="damage subject" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', drawn)
    assert across
    x1, y1, x2, y2 = map(float, across.groups())
    marks = re.findall(r'<circle class="mark subject" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert sorted((float(x), float(y)) for x, y in marks) == sorted([(x1, y1), (x2, y2)])
    alone = str(plane.draw([Stand("s", "subject", around(destruction + damage, 0.01), around(0.9, 0.1))], 0.1))
    limit = re.search(r'<line class="limit" x1="([\d.]+)"', drawn)
    assert limit
    assert x1 < float(limit[1]) < x2
    assert "second" not in alone


def test_an_interval_without_end_is_drawn_to_the_edge() -> None:
    endless = Estimate(value=0.2, interval=Interval(lower=-math.inf, upper=math.inf))
    drawn = str(plane.draw([Stand("a", "subject", endless, endless)], 0.1))
    assert "inf" not in drawn.replace("infinite", "")
    assert "nan" not in drawn


def test_the_path_names_its_ends() -> None:
    drawn = str(plane.path(traced().points, 0.1))
    assert re.findall(r'<text class="name subject"[^>]*>([^<]*)<', drawn) == ["0 %", "50 %", "100 %"]
    line = coordinates(drawn, "curve subject")
    assert len(line) == 11
    assert 'class="mark reference"' in drawn
    started = str(plane.path(traced().points[3:], 0.1))
    assert 'class="mark reference"' not in started


@pytest.mark.parametrize("kind", ["subject", "reference", "control", "context"])
def test_each_kind_of_model_has_its_own_shape(kind: str) -> None:
    others = {"subject", "reference", "control", "context"} - {kind}
    shape = str(mark(kind, 0, 0)).split()[0]
    assert shape not in {str(mark(other, 0, 0)).split()[0] for other in others}
