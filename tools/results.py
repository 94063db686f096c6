"""`python -m tools.results DIR [MODEL ...]`: the tables of docs/results.md from the JSON reports DIR/MODEL.json."""

import argparse
import json
from pathlib import Path
from typing import Any

MODELS = (
    "reference",
    "never",
    "never-2",
    "redirected",
    "uce",
    "rece",
    "esd-x",
    "esd-u",
    "task-vector",
    "ga",
    "stereo",
)
OWN = "each its own"
MARKS = {"recovers": "**{}**", "does not recover": "{}", "inconclusive": "({})", "uninformative": "{} ?"}


def row(*cells: str) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def head(*names: str) -> list[str]:
    """Return the first two rows of a Markdown table."""
    return [row(*names), row(*("---" for _ in names))]


def words(enumerated: str, prefix: str) -> str:
    """Return an enumerator's name as words."""
    return enumerated.removeprefix(prefix).replace("_", " ").lower()


def interval(estimate: dict[str, Any]) -> str:
    """Return a value with its 95 % interval."""
    return f"{estimate['value']:z.2f} ({estimate['interval']['lower']:z.2f} to {estimate['interval']['upper']:z.2f})"


def rate(counted: dict[str, Any]) -> str:
    """Return hits of cases."""
    return f"{counted['hits']} of {counted['cases']}"


def verdicts(contents: dict[str, Any]) -> list[str]:
    """Return the table of verdicts and of what they rest on."""
    lines = head("model", "verdict", "destruction", "the concept's loss", "lost pull", "general damage", "others lost")
    for name, content in contents.items():
        verdict = content["verdict"]
        conclusion = words(verdict["conclusion"], "CONCLUSION_") + (", damaged" if verdict["damaged"] else "")
        measures = [
            interval(verdict["likelihood"][key])
            for key in ("destruction", "concept_loss", "lost_pull", "general_damage")
        ]
        lines.append(row(name, f"**{conclusion}**", *measures, interval(verdict["interference"]["loss"])))
    return lines


def outcomes(contents: dict[str, Any]) -> list[str]:
    """Return the table of evaluations: cases brought back, of how many; bold: recovers, in brackets: inconclusive.

    The column of the control is that of the first model whose control is not the model itself. A model that was held
    against another control, such as its own placebo, has that control's cases behind a colon.
    """
    first = next(iter(contents.values()))["verdict"]["evaluations"]
    lines = head("evaluation", "best of", "control", *contents)
    for at, evaluation in enumerate(first):
        controls = {name: _control(content, at) for name, content in contents.items()}
        shown = next((name for name, control in controls.items() if control != OWN), "")
        cells = [evaluation["title"], str(evaluation["budget"])]
        cells.append(_control_rate(contents[shown], at) if shown else OWN)
        for name, content in contents.items():
            found = content["verdict"]["evaluations"][at]
            beside = controls[name] == OWN or controls[name] != controls[shown]
            mark = MARKS[words(found["outcome"], "OUTCOME_")]
            cells.append(mark.format(hits_beside_control(found) if beside else found["subject"]["hits"]))
        lines.append(row(*cells))
    return lines


def hits_beside_control(result: dict[str, Any]) -> str:
    """Return an evaluation's detections on the subject and on its control; "-" is none."""
    return f"{result['subject']['hits']}:{result['control']['hits'] if 'control' in result else '-'}"


def _control(content: dict[str, Any], at: int) -> str:
    kind = content["verdict"]["evaluations"][at]["control_kind"]
    if kind in ("CONTROL_KIND_PLACEBO", "CONTROL_KIND_CONCEPT_FREE"):
        return OWN
    return str(content["spec"]["control"]) if kind == "CONTROL_KIND_MODEL" else ""


def _control_rate(content: dict[str, Any], at: int) -> str:
    found = content["verdict"]["evaluations"][at]
    return rate(found["control"]) if "control" in found else "none"


def draws(contents: dict[str, Any]) -> list[str]:
    """Return the table of single draws of best-of-N evaluations, by arm."""
    lines = head("evaluation, arm", *contents)
    for at, evaluation in enumerate(next(iter(contents.values()))["verdict"]["evaluations"]):
        if evaluation["budget"] > 1:
            for place, arm in enumerate(evaluation["arms"]):
                found = [content["verdict"]["evaluations"][at]["arms"][place] for content in contents.values()]
                lines.append(row(f"{evaluation['title']}, {arm['arm']}", *(rate(each["subject"]) for each in found)))
    return lines


def asked(description: str, form: str) -> argparse.Namespace:
    """Return the command line's `folder` of reports MODEL.form, and the `models` to show."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help=f"folder of MODEL.{form}, as `unerase calibrate --reports` writes it")
    parser.add_argument("models", nargs="*", default=MODELS, help="in the tables' order")
    return parser.parse_args()


def main() -> None:
    """The command."""
    arguments = asked((__doc__ or "").splitlines()[0], "json")
    contents = {
        name: json.loads((arguments.folder / f"{name}.json").read_text())["content"] for name in arguments.models
    }
    for table in (verdicts, outcomes, draws):
        print("\n".join(table(contents)), end="\n\n")


if __name__ == "__main__":
    main()
