"""`python -m tools.architectures UNETS FLOWS [MODEL ...]`: the tables of docs/architectures.md.

UNETS and FLOWS hold the JSON reports of the same audits on the testbed's two worlds, as `unerase calibrate --reports`
writes them: MODEL.json of the UNets, flow-MODEL.json of the flow transformers.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from tools.controls import conclusion
from tools.results import MARKS, head, interval, row, words

MODELS = ("reference", "never", "never-2", "redirected", "uce", "esd-x", "task-vector", "ga")
FLOW = "flow-"
CONFIDENCE = 0.95

Pairs = Mapping[str, tuple[dict[str, Any], dict[str, Any]]]
"""The reports of a model of each world, the UNet's first."""


def difference(unet: tuple[int, int], flow: tuple[int, int]) -> tuple[float, float, float]:
    """Return by how much the share of the flow's cases is higher, with the interval's ends.

    Each is hits of cases. The interval is Newcombe's (1998, method 10), of Wilson's intervals of both shares.
    """
    shares, below, above = [], [], []
    for hits, cases in (flow, unet):
        share, found = hits / cases, stats.binomtest(hits, cases).proportion_ci(CONFIDENCE, "wilson")
        shares.append(share)
        below.append(share - float(found.low))
        above.append(float(found.high) - share)
    apart = shares[0] - shares[1]
    return (
        apart,
        apart - float((below[0] ** 2 + above[1] ** 2) ** 0.5),
        apart + float((above[0] ** 2 + below[1] ** 2) ** 0.5),
    )


def verdicts(pairs: Pairs) -> list[str]:
    """Return the table of both worlds' verdicts and of the destruction that the likelihood shows."""
    lines = head("model", "UNet", "flow transformer", "destruction, UNet", "destruction, flow")
    for name, reports in pairs.items():
        destroyed = [interval(content["verdict"]["likelihood"]["destruction"]) for content in reports]
        lines.append(row(name, *(f"**{conclusion(content)}**" for content in reports), *destroyed))
    return lines


def side_by_side(pairs: Pairs) -> list[str]:
    """Return the table of evaluations and models: cases brought back in both worlds, the UNet's first."""
    lines = head("evaluation", *pairs)
    for title, found in _results(pairs):
        lines.append(row(title, *(" / ".join(_marked(each, "{hits}") for each in both) for both in found.values())))
    return lines


def differences(pairs: Pairs) -> list[str]:
    """Return the table of evaluations of each model: hits in both worlds, and the difference with its interval."""
    lines = head("evaluation", "model", "UNet", "flow transformer", "difference")
    for title, found in _results(pairs):
        for name, both in found.items():
            lines.append(row(title, name, *(_marked(each, "{hits} of {cases}") for each in both), _apart(*both)))
    return lines


def _results(pairs: Pairs) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    """Yield each evaluation's title, and its results on both models of each name."""
    for at, evaluation in enumerate(next(iter(pairs.values()))[0]["verdict"]["evaluations"]):
        found = {
            name: [content["verdict"]["evaluations"][at] for content in reports] for name, reports in pairs.items()
        }
        for name, both in found.items():
            if any(each["name"] != evaluation["name"] for each in both):
                raise ValueError(f"the reports of {name} hold other evaluations, or in another order")
        yield evaluation["title"], found


def _marked(result: dict[str, Any], form: str) -> str:
    return MARKS[words(result["outcome"], "OUTCOME_")].format(form.format(**result["subject"]))


def _apart(unet: dict[str, Any], flow: dict[str, Any]) -> str:
    both = [(each["subject"]["hits"], each["subject"]["cases"]) for each in (unet, flow)]
    if not all(cases for _, cases in both):
        return "-"
    apart, low, high = difference(*both)
    return f"{apart:+z.2f} ({low:+z.2f} to {high:+z.2f})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("unets", metavar="UNETS", type=Path, help="folder of the UNets' reports")
    parser.add_argument("flows", metavar="FLOWS", type=Path, help="folder of the flow transformers' reports")
    parser.add_argument("models", metavar="MODEL", nargs="*", default=MODELS, help="in the tables' order")
    arguments = parser.parse_args()
    pairs = {
        name: (_content(arguments.unets / f"{name}.json"), _content(arguments.flows / f"{FLOW}{name}.json"))
        for name in arguments.models
    }
    for table in (verdicts, side_by_side, differences):
        print("\n".join(table(pairs)), end="\n\n")


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())["content"]
    return content


if __name__ == "__main__":
    main()
