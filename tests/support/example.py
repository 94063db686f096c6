"""Installs the example package of a third party as a user would, and writes a catalogue file that uses its judge."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from unerase_backend.catalogue import EMBEDDED, Catalogue

PACKAGE = Path(__file__).parents[2] / "examples" / "third_party"
PROBE, ATTACK, KIND = "doubled-guidance", "prompt-offset", "nearest-template"
REQUIRED, MEASURE = "repeated-prompt", "error-profile"
BROKEN = "broken-probe"
JUDGE, CONCEPT = "example/templates", "example/hourglass"
GUARD, GUARDED = "flat-pictures", "example/guarded"

_WRITE_TEMPLATES = """
import json, sys
from pathlib import Path
from unerase_backend.catalogue import sheets
from unerase_backend.runtime.pictures import decode_picture
from unerase_example.nearest_template import write_templates
folder, pictures = Path(sys.argv[1]), json.loads(sys.argv[2])
cut = {label: sheets.cut(Path(sheet), 32) for label, sheet in pictures.items()}
write_templates(folder, {label: [decode_picture(tile) for tile in tiles] for label, tiles in cut.items()})
"""


def install(site: Path, package: Path = PACKAGE) -> Path:
    """Build a package and install only it into the folder `site`."""
    # A copy, because pip builds in the folder of the source.
    source = shutil.copytree(package, site.with_name(f"{site.name}-source"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return site


def write_catalogue(folder: Path, environment: dict[str, str]) -> Path:
    """Write a catalogue with a judge and a guard of the package's kinds, and a concept that the judge knows."""
    known = Catalogue.load().concepts
    objects = {name: str(entry.pictures) for name, entry in known.items() if entry.kind == "object"}
    arguments = [str(folder / "templates"), json.dumps(objects)]
    subprocess.run([sys.executable, "-c", _WRITE_TEMPLATES, *arguments], check=True, timeout=120, env=environment)
    concept = yaml.safe_load(EMBEDDED.read_text())["concepts"]["hourglass"]
    concept.pop("pack", None)
    for sheet in ("pictures", "near_misses"):
        shutil.copyfile(EMBEDDED.parent / concept[sheet], folder / f"{sheet}.png")
        concept[sheet] = f"{sheet}.png"
    concept |= {"labels": {**concept["labels"], JUDGE: ["hourglass"]}, "tile": 32}
    file = folder / "catalogue.yaml"
    guards = [{"kind": "prompt-filter", "words": concept["names"]}, {"kind": GUARD}]
    entries = {
        "models": {GUARDED: {"base": "testbed/reference", "guards": guards}},
        "judges": {JUDGE: {"kind": KIND, "path": "templates"}},
        "concepts": {CONCEPT: concept},
    }
    file.write_text(yaml.safe_dump(entries))
    return file


def put_broken(site: Path) -> None:
    """Put a distribution into `site` whose probe imports a missing module."""
    (site / "unerase_broken.py").write_text("import a_module_that_is_not_there\n")
    info = site / "unerase_broken-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unerase-broken\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[unerase.probes]\n{BROKEN} = unerase_broken\n")
