"""The catalogue's entry of what was imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unerase_backend.importing.folders import resolution_of


@dataclass(frozen=True)
class Described:
    """What is known of an imported model."""

    name: str
    stem: str
    """What its files' names begin with."""
    origin: str
    """The imported file's name."""
    base: str
    method: str
    erased: tuple[str, ...]
    digests: Mapping[str, str]
    """SHA-256 of each written file, by part."""
    whole: bool
    """Whether it is a pipeline of its own."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """The word of each learned embedding, by its part."""

    def file_of(self, part: str) -> str:
        """Return a part's file, relative to the catalogue's entry."""
        if not self.whole:
            return f"{self.stem}.{part}.safetensors"
        file = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        return f"{self.stem}/{part}/{file}.safetensors"


def entry_of(described: Described, base: Path | None) -> tuple[str, list[str]]:
    """Return the entry as YAML, and what the user should know of it."""
    entry: dict[str, Any] = {}
    notes = []
    others = {"lora", *described.tokens}
    pinned = {part: digest for part, digest in described.digests.items() if part not in others}
    if described.whole:
        resolution = resolution_of(base) if base else 0
        entry |= {"pipeline": described.stem, "resolution": resolution}
        if not resolution:
            notes.append("the entry's resolution is to be filled in: the side of the model's pictures in pixels")
    else:
        entry["base"] = described.base or "BASE"
        entry |= {part: described.file_of(part) for part in pinned}
        if "lora" in described.digests:
            entry["lora"] = [{"file": described.file_of("lora"), "scale": 1.0, "sha256": described.digests["lora"]}]
        if described.tokens:
            entry["embedding"] = [
                {"file": described.file_of(part), "token": token, "sha256": described.digests[part]}
                for part, token in described.tokens.items()
            ]
    if pinned:
        entry["sha256"] = pinned
    if described.method:
        entry["method"] = described.method
    if described.erased:
        entry["erased"] = list(described.erased)
    content = yaml.safe_dump({"models": {described.name: entry}}, sort_keys=False, allow_unicode=True, width=1000)
    # A name could hold a line break, and more entries behind it.
    origin = "".join(letter if letter.isprintable() else "?" for letter in described.origin)
    return f"# Imported from {origin}\n{content}", notes
