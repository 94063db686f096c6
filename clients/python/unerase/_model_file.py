"""Models in a YAML file, to be registered: entries of a catalogue (docs/operations.md), with labels beside them.

labels: {release: "2026-12"}                      # of every model of this file
models:
  acme/edited: {base: sd/1.4, unet: /models/edited/unet.safetensors, method: UCE, erased: [tench]}
  acme/other:  {base: sd/1.4, unet: s3://models/other/unet.safetensors, labels: {release: "2027-01"}}

Files and folders are the backend's: a path or URL within a place that its operator allows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unerase._campaign_file import LABELS
from unerase._file_shape import Free, Key, Keys, MapOf, Text, read_shaped

_MOST = 10_000
MODELS = Keys(
    {
        "models": Key(MapOf(Text(most=100), Free(), _MOST), "Entries of a catalogue by their names.", required=True),
        "labels": Key(LABELS, "Labels of every model that does not have its own of the same key."),
    }
)


@dataclass(frozen=True)
class ModelEntry:
    """A model that is to be registered."""

    name: str
    entry: dict[str, Any]
    labels: dict[str, str]


def read_models(path: Path | str) -> list[ModelEntry]:
    """Read the models of a file.

    Raises:
        ValueError: the file does not describe models; the message names file, line, key and reason.
        OSError: the file cannot be read.
    """
    read, place = read_shaped(Path(path), MODELS)
    if not read["models"]:
        raise place.at("models").wrong("must name a model at least")
    found = []
    for name, entry in read["models"].items():
        own = LABELS.read(entry.get("labels", {}), place.at("models").at(name).at("labels"))
        described = {key: value for key, value in entry.items() if key != "labels"}
        found.append(ModelEntry(name, described, {**read.get("labels", {}), **own}))
    return found
