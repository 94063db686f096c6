"""`python -m tools.controls WITH WITHOUT [MODEL ...]`: verdicts with a control model, and without any.

WITH and WITHOUT hold the JSON reports MODEL.json of the same audits, as `unerase calibrate --reports` writes them, the
second by `unerase calibrate --without-never`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tools.results import MARKS, head, hits_beside_control, row, words


def conclusion(content: dict[str, Any]) -> str:
    """Return a report's conclusion in words."""
    verdict = content["verdict"]
    return words(verdict["conclusion"], "CONCLUSION_") + (", damaged" if verdict["damaged"] else "")


def control(content: dict[str, Any]) -> str:
    """Return what a report's evaluations were held against, each kind of control once, in words."""
    kinds = (words(each["control_kind"], "CONTROL_KIND_") for each in content["verdict"]["evaluations"])
    return ", ".join(dict.fromkeys(kinds))


def counted(result: dict[str, Any]) -> str:
    """Return an evaluation's detections on the subject and on its control, marked by its outcome."""
    return MARKS[words(result["outcome"], "OUTCOME_")].format(hits_beside_control(result))


def verdicts(models: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Return the table of both verdicts of each model; `models` holds its report with and without the model."""
    lines = head("model", "with", "without", "controls without")
    for name, (before, after) in models.items():
        lines.append(row(name, conclusion(before), conclusion(after), control(after)))
    return lines


def evaluations(models: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Return the table of evaluations: with and without, subject:control; bold: recovers, in brackets: inconclusive."""
    lines = head("evaluation", *models)
    results = [
        tuple({each["name"]: each for each in content["verdict"]["evaluations"]} for content in pair)
        for pair in models.values()
    ]
    for name, first in results[0][0].items():
        cells = [" / ".join(counted(of_report[name]) for of_report in pair) for pair in results]
        lines.append(row(first["title"], *cells))
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("with_model", metavar="WITH", type=Path, help="folder of the reports with a control model")
    parser.add_argument("without_model", metavar="WITHOUT", type=Path, help="folder of the reports without one")
    parser.add_argument("models", metavar="MODEL", nargs="*", help="in the tables' order; all of WITH unless given")
    arguments = parser.parse_args()
    names = arguments.models or sorted(path.stem for path in arguments.with_model.glob("*.json"))
    folders = (arguments.with_model, arguments.without_model)
    models = {}
    for name in names:
        before, after = (json.loads((folder / f"{name}.json").read_text())["content"] for folder in folders)
        models[name] = before, after
    for table in (verdicts, evaluations):
        print("\n".join(table(models)), end="\n\n")


if __name__ == "__main__":
    main()
