"""`python -m tools.context [DIR]`: where the testbed's models stand on the plane, from audits of each of them.

Prints what `services/unerase_backend/report/context.json` holds: for each concept and reference (known by its digest)
the likelihood figures of every model that claims to have erased the concept, or never learned it. Runs the audits; or
reads the JSON reports DIR/*.json of audits that were run. A model whose lost pull could not be measured has no place
on the plane and is left out; so is the reference, which stands at the origin.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unerase import AuditSpec, Battery, Client, EvaluationRequest
from unerase._local import local_backend

SEED_BASE = 2505
STEPS = 10
"""Of the standard prompt, which no audit can do without; the likelihood draws no pictures."""


def audited() -> Iterator[dict[str, Any]]:
    """Audit every model of the testbed for each of its concepts, and yield the reports' contents."""
    with tempfile.TemporaryDirectory() as folder, local_backend(Path(folder)) as address, Client(address) as client:
        for model in client.models():
            for concept in (*model.erased, *model.never_learned):
                battery = Battery(
                    evaluations=[EvaluationRequest(name="standard-prompt"), EvaluationRequest(name="likelihood")],
                    allow_incomplete=True,
                )
                spec = AuditSpec(
                    subject=model.name,
                    reference=model.base,
                    concept=concept,
                    battery=battery,
                    steps=STEPS,
                    seed_base=SEED_BASE,
                )
                yield client.report_json(client.audit(spec).id)["content"]


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the contents of the reports in a folder."""
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text())["content"]


def measured_with(content: dict[str, Any]) -> str:
    """Return where a report's likelihood figures come from, in words."""
    likelihood, spec = content["verdict"]["likelihood"], content["spec"]
    return (
        f"audits of the models on {spec['reference']}, each with {likelihood['concept_pictures']} pictures of the "
        f"concept and {likelihood['other_pictures']} of others, seed base {spec['seed_base']}"
    )


def grouped(contents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups in order of concept and reference, the models in each by name.

    Raises:
        ValueError: models of one group were not measured alike.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for content in contents:
        spec, likelihood = content["spec"], content["verdict"].get("likelihood")
        if spec["subject"] == spec["reference"] or likelihood is None or "lost_pull" not in likelihood:
            continue
        models = {model["name"]: model for model in content["manifest"]["models"]}
        subject, reference = models[spec["subject"]], models[spec["reference"]]["digest"]
        source = measured_with(content)
        group = groups.setdefault(
            (content["concept"]["name"], reference),
            {"concept": content["concept"]["name"], "reference": reference, "source": source, "models": []},
        )
        if group["source"] != source:
            raise ValueError(f"figures that cannot be compared: {group['source']}; {source}")
        figures = {name: likelihood[name] for name in ("destruction", "lost_pull", "general_damage")}
        group["models"].append(
            {"model": subject["name"], "method": subject["method"], "digest": subject["digest"], **figures}
        )
    for group in groups.values():
        group["models"].sort(key=lambda entry: entry["model"])
    return [groups[key] for key in sorted(groups)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder of reports, as `unerase audit --json-file` writes them"
    )
    folder = parser.parse_args().folder
    json.dump(grouped(read(folder) if folder else audited()), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
