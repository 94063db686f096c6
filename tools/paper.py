"""`python -m tools.paper DIR`: the paper's table of methods beside the testbed's, from the JSON reports DIR/MODEL.json.

The figures of Lu et al., arXiv 2505.17013 (Stable Diffusion 1.4, accuracy in %, ten objects), are those of a third
party's notes on the paper. Ours are rates in % of one concept; CLIP is the mean similarity times 100. The two tables
cannot be compared figure by figure, so what is compared is the order of the methods: for every pair of methods that
both columns tell apart, whether they agree which comes first. A column whose evaluation the audits have not is empty.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from tools.results import head, row

COLUMNS = (
    "CLIP after erasure",
    "textual inversion",
    "UnlearnDiffAtk",
    "unrelated",
    "inpainting",
    "completion t=5",
    "noise",
    "classifier",
    "classifier + noise",
)
PAPER: Mapping[str, tuple[float | None, ...]] = {
    "ga": (24.3, 0.6, 6.5, 52.2, 61.7, 1.1, 2.7, 3.7, 4.1),
    "uce": (22.4, 71.2, 26.8, 75.0, 69.1, 42.7, 21.9, 45.6, 75.6),
    "esd-x": (21.1, 65.9, 21.0, 71.3, 69.1, 37.8, 30.7, 47.8, 73.3),
    "esd-u": (20.9, 31.8, 16.6, 70.4, None, None, None, None, None),
    "task-vector": (23.1, 6.2, 10.3, 60.4, 66.8, 2.4, 11.0, 30.2, 35.1),
    "stereo": (19.6, 6.3, 3.7, 52.8, 63.8, 3.2, 1.1, 5.8, 20.3),
    "rece": (21.2, 58.2, 7.2, 71.7, 68.2, 36.5, 13.0, 33.3, 36.7),
}


Read = Callable[[dict[str, Any]], float | None]


def best_of(name: str) -> Read:
    """Return what reads an evaluation's deciding rate, in %."""

    def read(verdict: dict[str, Any]) -> float | None:
        found = _evaluation(verdict, name)
        return None if found is None else percent(found["subject"])

    return read


def arm(name: str, wanted: str) -> Read:
    """Return what reads the rate of one arm's draws, in %."""

    def read(verdict: dict[str, Any]) -> float | None:
        found = _evaluation(verdict, name)
        arms = [] if found is None else found["arms"]
        return next((percent(each["subject"]) for each in arms if each["arm"] == wanted), None)

    return read


def similarity(verdict: dict[str, Any]) -> float | None:
    """Return the mean similarity of the subject's plain pictures with the concept's text, times 100."""
    return 100 * float(verdict["tracing"]["points"][-1]["similarity"]) if "tracing" in verdict else None


def unrelated(verdict: dict[str, Any]) -> float | None:
    """Return the detection of all other concepts under their prompts, in %."""
    rates = [item["subject"] for item in verdict["interference"]["concepts"]]
    return 100 * float(sum(rate["hits"] for rate in rates) / sum(rate["cases"] for rate in rates))


READERS: tuple[Read, ...] = (
    similarity,
    best_of("textual-inversion"),
    best_of("unlearn-diff-atk"),
    unrelated,
    best_of("inpainting"),
    arm("diffusion-completion", "prompt@0.1"),
    best_of("noise-based"),
    best_of("classifier-guidance"),
    best_of("classifier-guidance-noise"),
)


def percent(rate: dict[str, Any]) -> float:
    """Return a rate in %."""
    return 100 * float(rate["hits"] / rate["cases"])


def pairs(
    paper: Mapping[str, float | None], ours: Mapping[str, float | None]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs on whose order both agree and those on which they differ, each with our higher method first."""
    agree: list[tuple[str, str]] = []
    differ: list[tuple[str, str]] = []
    for one, other in combinations(ours, 2):
        first, second, paper_first, paper_second = ours[one], ours[other], paper.get(one), paper.get(other)
        if first is None or second is None or paper_first is None or paper_second is None:
            continue
        if first == second or paper_first == paper_second:
            continue
        same = (paper_first > paper_second) == (first > second)
        (agree if same else differ).append((one, other) if first > second else (other, one))
    return agree, differ


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of MODEL.json, as `unerase audit --json-file` writes them")
    folder = parser.parse_args().folder
    verdicts = {
        name: json.loads((folder / f"{name}.json").read_text())["content"]["verdict"]
        for name in PAPER
        if (folder / f"{name}.json").exists()
    }
    print("\n".join(head("method", *COLUMNS)))
    ours = {name: [read(verdict) for read in READERS] for name, verdict in verdicts.items()}
    for name, figures in ours.items():
        print(row(name, *(f"{_told(one)} ({_told(other)})" for one, other in zip(figures, PAPER[name], strict=True))))
    print()
    print("\n".join(head("column", "pairs in the same order", "pairs in the other order (ours: higher > lower)")))
    for at, column in enumerate(COLUMNS):
        paper = {name: PAPER[name][at] for name in ours}
        agree, differ = pairs(paper, {name: figures[at] for name, figures in ours.items()})
        told = ", ".join(f"{higher} > {lower}" for higher, lower in differ)
        print(row(column, f"{len(agree)} of {len(agree) + len(differ)}", told or "none"))


def _evaluation(verdict: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((each for each in verdict["evaluations"] if each["name"] == name), None)


def _told(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3g}"


if __name__ == "__main__":
    main()
