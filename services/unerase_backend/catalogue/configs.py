"""Reads the configurations of a model's folder, as JSON and nothing more."""

import json
from pathlib import Path
from typing import Any

from unerase_backend.catalogue.findings import Findings

MAX_CONFIG_BYTES = 64 * 1024 * 1024
# The keys by which a configuration names code in a folder or on the hub.
_CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")


def read_json(path: Path, findings: Findings, part: str) -> dict[str, Any] | None:
    """Return the object in a file; None, with a problem found, if it is missing or holds something else."""
    name = f"{part}/{path.name}" if part else path.name
    content = parse(path)
    if isinstance(content, dict):
        return content
    if not path.is_file():
        findings.problem(part, "MODEL_INCOMPLETE", f"{name} is missing", remedy="fetch the file", looked_for=name)
    else:
        what = f"{name} is not JSON" if content is None else f"{name} is not a JSON object"
        findings.problem(part, "MODEL_INCOMPLETE", what, found=name)
    return None


def parse(path: Path) -> Any:
    """Return the content of a JSON file; None if it cannot be read, or is no file."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def find_code(folder: Path, findings: Findings) -> None:
    """Find every configuration of a pipeline's folder that names code."""
    for file in (folder / "model_index.json", *sorted(folder.glob("*/*.json"))):
        # A vocabulary may hold any word.
        if file.name == "vocab.json":
            continue
        if named := _code_named(parse(file)):
            part = file.parent.name if file.parent != folder else ""
            name = f"{part}/{file.name}" if part else file.name
            what = f"{name} has {named!r}, which names code that is not run here"
            findings.problem(part, "MODEL_NAMES_CODE", what, found=name, remedy="remove the key if nothing needs it")


def shown(name: str) -> str:
    """Return a file's name as it can be shown: characters that do not print are escaped."""
    return name if name.isprintable() else ascii(name)


def _code_named(content: Any) -> str | None:
    """Return the first key anywhere in a configuration that names code."""
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if found := next((key for key in _CODE_KEYS if key in value), None):
                return found
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return None
