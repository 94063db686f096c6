"""`python -m tools.control_rates DIR ...`: how often each kind of control shows the concept, beside the true control.

Each DIR holds JSON reports of audits, as `unerase calibrate --reports` writes them. Audits of one concept are pooled
over their subjects, and over the folders. A control model is the same for all subjects of a folder, so it counts once
in each.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tools.results import head, row

KINDS = {
    "CONTROL_KIND_MODEL": "never",
    "CONTROL_KIND_PLACEBO": "placebo",
    "CONTROL_KIND_CONCEPT_FREE": "concept-free",
}
Counts = dict[tuple[str, str], dict[str, dict[tuple[Path, str], tuple[int, int]]]]
"""Hits and cases by concept and title, then by kind of control, then by folder and the model the control ran on."""


def read(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the contents of the reports in the folders, each with its folder; a folder that is named twice once."""
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        for path in sorted(folder.glob("*.json")):
            content = json.loads(path.read_text()).get("content")
            # A calibration may be among the reports.
            if content is not None:
                yield folder, content


def rates(contents: Iterable[tuple[Path, dict[str, Any]]], *, arms: bool) -> Counts:
    """Return each control's detections: of decided cases, or with `arms` of the single draws of each arm."""
    counts: Counts = {}
    for folder, content in contents:
        spec = content["spec"]
        for result in content["verdict"]["evaluations"]:
            kind = result["control_kind"]
            for title, counted in _counted(result, arms):
                ran_on = spec["control"] if kind == "CONTROL_KIND_MODEL" else spec["subject"]
                of_kind = counts.setdefault((spec["concept"], title), {}).setdefault(kind, {})
                of_kind[folder, ran_on] = counted["hits"], counted["cases"]
    return counts


def table(counts: Counts) -> list[str]:
    """Return the rates by concept and evaluation, one kind of control a column."""
    lines = head("concept", "evaluation", *KINDS.values())
    for (concept, title), by_kind in counts.items():
        lines.append(row(concept, title, *(_pooled(by_kind.get(kind, {})) for kind in KINDS)))
    return lines


def _counted(result: dict[str, Any], arms: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if not arms:
        if "control" in result and result["control_kind"] in KINDS:
            yield result["title"], result["control"]
    elif result["budget"] > 1 and result["control_kind"] in KINDS:
        for arm in result["arms"]:
            if "control" in arm:
                yield f"{result['title']}, {arm['arm']}", arm["control"]


def _pooled(by_model: dict[tuple[Path, str], tuple[int, int]]) -> str:
    hits, cases = (sum(counts) for counts in zip(*by_model.values(), strict=True)) if by_model else (0, 0)
    return f"{hits} of {cases} ({hits / cases:.2f})" if cases else "-"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="folder of JSON reports")
    contents = list(read(parser.parse_args().folders))
    for arms in (False, True):
        print("\n".join(table(rates(contents, arms=arms))), end="\n\n")


if __name__ == "__main__":
    main()
