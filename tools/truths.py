"""`python -m tools.truths [--out DIR]`: verdicts on models whose truth is known and that no tolerance was chosen for.

Each row of the table names the model, its truth, the control, the conclusions that are right, and the one that came
out. The models are made from the shipped reference in a few minutes and written to DIR with their catalogue; the audits
(preset `quick`, 24 cases, ten steps) run on a backend of their own, and their reports are written beside the models.
The command exits with 1 if a row is wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DConditionModel

from tools.results import head, row, words
from unerase import AuditSpec, Battery, Client, EvaluationRequest
from unerase._local import local_backend
from unerase.v1.types_pb2 import ControlKind
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.testbed import storage
from unerase_backend.testbed.erasing import erase

WEIGHTS = EMBEDDED.parent
SEED = 2505
RANDOM_SEED = 13

AVOIDED, REMOVED = "avoided", "removed"


@dataclass(frozen=True)
class Edit:
    """A model made from the reference: an eraser turns one concept into another."""

    eraser: str
    concept: str
    anchor: str

    @property
    def name(self) -> str:
        """Its name in the catalogue."""
        return f"truths/{self.concept}-{self.eraser}-{self.anchor}"


@dataclass(frozen=True)
class Row:
    """One audit whose right conclusion is known."""

    model: str
    truth: str
    right: str
    concept: str = "hourglass"
    control: str = "testbed/never"
    """A model, or "placebo"."""
    added: tuple[str, ...] = ()
    """Evaluations that the battery has beside those of the preset."""


RANDOM = "truths/random-unet"
REDIRECTED = Edit("redirected", "moon", "square")
MOON_ABLATED = Edit("concept-ablation", "moon", "circle")
HOURGLASS_ABLATED = Edit("concept-ablation", "hourglass", "blob")
PLACEBO = "placebo"
ROWS = (
    Row(RANDOM, "knows nothing", REMOVED),
    Row(REDIRECTED.name, "avoided", AVOIDED, "moon", PLACEBO),
    # What the preset has finds too little of it in 24 cases to decide.
    Row(MOON_ABLATED.name, "hidden", AVOIDED, "moon", PLACEBO, added=("relearning",)),
    Row("testbed/never-2", "never learned it", REMOVED),
    Row("testbed/never-2", "never learned it", REMOVED, control=PLACEBO),
    Row("testbed/never", "never learned it", REMOVED, control=PLACEBO),
    Row(HOURGLASS_ABLATED.name, "hidden", AVOIDED),
)


def make_models(out: Path) -> Path:
    """Write the models that are not shipped, unless they are there, and return the path of their catalogue."""
    # As in training: the sums depend on the number of threads, and threads wait for one another on a busy machine.
    torch.set_num_threads(1)
    models: dict[str, dict[str, Any]] = {}
    random = out / "random-unet" / storage.UNET
    if not random.exists():
        storage.save_tensors(_random_unet().state_dict(), random)
    models[RANDOM] = {"base": "testbed/reference", "unet": str(random.relative_to(out))}
    for edit in (REDIRECTED, MOON_ABLATED, HOURGLASS_ABLATED):
        folder = out / edit.name.partition("/")[2]
        if not folder.exists():
            erase(edit.eraser, edit.concept, WEIGHTS, folder, edit.anchor)
        files = {part: folder / file for part, file in _FILES.items() if (folder / file).exists()}
        paths = {part: str(path.relative_to(out)) for part, path in files.items()}
        models[edit.name] = {"base": "testbed/reference", **paths, "method": edit.eraser, "erased": [edit.concept]}
    catalogue = out / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"models": models}, sort_keys=False))
    return catalogue


_FILES = {"unet": storage.UNET, "text_encoder": storage.TEXT_ENCODER}


def _random_unet() -> UNet2DConditionModel:
    config = UNet2DConditionModel.load_config(WEIGHTS / storage.REFERENCE / "unet", local_files_only=True)
    torch.manual_seed(RANDOM_SEED)
    drawn: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return drawn


def audit(rows: Sequence[Row], catalogue: Path, out: Path) -> list[dict[str, Any]]:
    """Return the reports' contents of the rows' audits, in order."""
    contents = []
    with local_backend(out / "state", catalogues=[catalogue]) as address, Client(address) as client:
        for number, each in enumerate(rows):
            placebo = each.control == PLACEBO
            spec = AuditSpec(
                subject=each.model,
                concept=each.concept,
                control="" if placebo else each.control,
                control_kind=ControlKind.CONTROL_KIND_PLACEBO if placebo else ControlKind.CONTROL_KIND_MODEL,
                battery=Battery(preset="quick", evaluations=[EvaluationRequest(name=name) for name in each.added]),
                seed_base=SEED,
            )
            report = client.report_json(client.audit(spec).id)
            (out / f"{number + 1}.json").write_text(json.dumps(report))
            contents.append(report["content"])
    return contents


def table(rows: Iterable[Row], contents: Iterable[dict[str, Any]]) -> tuple[list[str], bool]:
    """Return the table, and whether every row is right."""
    lines = head("model", "concept", "control", "added to quick", "truth", "right", "came out", "statement")
    right = True
    for each, content in zip(rows, contents, strict=True):
        verdict = content["verdict"]
        conclusion = words(verdict["conclusion"], "CONCLUSION_")
        right = right and conclusion == each.right
        mark = conclusion if conclusion == each.right else f"{conclusion} (WRONG)"
        mark += ", damaged" if verdict["damaged"] else ""
        lines.append(
            row(
                each.model,
                each.concept,
                each.control,
                ", ".join(each.added),
                each.truth,
                each.right,
                mark,
                verdict["statement"],
            )
        )
    return lines, right


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/truths"), help="folder of models and reports")
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    lines, right = table(ROWS, audit(ROWS, make_models(out), out))
    print("\n".join(lines))
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
