"""Writes a family's `manifest.json`: digests of files, seeds, library versions, figures and minutes of all parts."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unerase_backend.testbed import recipe, storage
from unerase_backend.testbed.flow import recipe as flow
from unerase_backend.testbed.recipe import FAMILIES_FOLDER, PICTURES, Family
from unerase_backend.testbed.registry import Figures


def write(family: Family, names: Mapping[str, str], out: Path, work: Path) -> Figures:
    """Write `manifest.json` from what parts left in the work folder; `names` are parts and their names in the file.

    For a part that was not made again it keeps the earlier figures.
    """
    root = out / family.folder
    path = root / "manifest.json"
    earlier: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept: dict[str, Figures] = {key: earlier.get(key, {}) for key in ("figures", "minutes", "cpu_minutes")}
    told: dict[str, Figures] = {key: {} for key in kept}
    for name, short in names.items():
        if (work / f"{name}.json").exists():
            figures: Figures = json.loads((work / f"{name}.json").read_text())
            minutes = {key: figures.pop(key) for key in ("minutes", "cpu_minutes")}
            for key, value in {"figures": figures, **minutes}.items():
                told[key][short] = value
        elif short in kept["figures"]:
            for key, values in kept.items():
                told[key][short] = values[short]
    files = sorted(
        file
        for file in root.rglob("*")
        if file.is_file() and file.name != "manifest.json" and FAMILIES_FOLDER not in file.relative_to(root).parts
    )
    manifest = {
        "concept": family.concept,
        "seeds": recipe.SEEDS | flow.SEEDS,
        "pictures": PICTURES,
        "minutes": told["minutes"],
        "cpu_minutes": told["cpu_minutes"],
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "safetensors")
        },
        "figures": told["figures"],
        "sha256": {str(file.relative_to(root)): storage.digest(file) for file in files},
    }
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    return {"bytes": sum(file.stat().st_size for file in files)}
