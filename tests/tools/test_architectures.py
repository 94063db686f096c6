"""The tables that compare the testbed's two worlds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import architectures
from tools.architectures import difference

COUNTS = st.integers(1, 60).flatmap(lambda cases: st.tuples(st.integers(0, cases), st.just(cases)))


@pytest.mark.parametrize(
    ("unet", "flow", "expected"),
    # Newcombe, Statistics in Medicine 17 (1998), table II, method 10.
    [
        ((48, 80), (56, 70), (0.2, 0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.6, 0.1705, 0.8090)),
        ((0, 10), (10, 10), (1.0, 0.6075, 1.0)),
    ],
)
def test_the_interval_is_newcombes(
    unet: tuple[int, int], flow: tuple[int, int], expected: tuple[float, float, float]
) -> None:
    assert difference(unet, flow) == pytest.approx(expected, abs=1e-4)


@given(COUNTS, COUNTS)
def test_the_interval_holds_the_difference_and_turns_with_the_worlds(
    one: tuple[int, int], two: tuple[int, int]
) -> None:
    apart, low, high = difference(one, two)
    assert -1 - 1e-12 <= low <= apart + 1e-12
    assert apart - 1e-12 <= high <= 1 + 1e-12
    assert difference(two, one) == pytest.approx((-apart, -high, -low))


def report(hits: int, conclusion: str) -> dict[str, Any]:
    ends = {"value": 0.5, "interval": {"lower": 0.25, "upper": 0.75}}
    result = {"name": "likelihood-free", "title": "A title", "outcome": "OUTCOME_RECOVERS"}
    result |= {"subject": {"hits": hits, "cases": 24}}
    verdict = {"conclusion": conclusion, "damaged": False, "likelihood": {"destruction": ends}, "evaluations": [result]}
    return {"content": {"verdict": verdict}}


def test_both_worlds_stand_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "uce.json").write_text(json.dumps(report(24, "CONCLUSION_AVOIDED")))
    (tmp_path / "flow-uce.json").write_text(json.dumps(report(6, "CONCLUSION_INCONCLUSIVE")))
    monkeypatch.setattr(sys, "argv", ["architectures", str(tmp_path), str(tmp_path), "uce"])
    architectures.main()
    said = capsys.readouterr().out
    assert "| uce | **avoided** | **inconclusive** | 0.50 (0.25 to 0.75) | 0.50 (0.25 to 0.75) |" in said
    assert "| A title | **24** / **6** |" in said
    assert "| A title | uce | **24 of 24** | **6 of 24** | -0.75 (-0.88 to -0.51) |" in said
