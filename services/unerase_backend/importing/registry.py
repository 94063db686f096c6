"""What an importer is handed and returns, and how it registers itself: one module in `importers/` for each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unerase_backend.catalogue.layouts import Layout
from unerase_backend.catalogue.tensor_names import current_name
from unerase_backend.importing.architecture import Architecture
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

PARTS = ("unet", "text_encoder", "vae")


@dataclass(frozen=True, eq=False)
class Source:
    """A file's content, as it was read."""

    tensors: Mapping[str, Tensor]
    """By their names, without torch's wrappers."""
    layout: Layout
    metadata: Mapping[str, str]
    """Of safetensors."""
    held: Any
    """Everything that the file holds, for what stands beside the tensors."""
    beside: str
    """The content of `adapter_config.json` beside the file; empty if there is none."""
    architecture: Architecture
    complete: bool = False
    """Whether every tensor of the part must be there."""
    token: str = ""
    """The word that a learned embedding gets; by default the file's own."""

    def of_part(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of a part, or all if no name has the part's, by today's names (`tensor_names`).

        Raises:
            UnsafeModelError: some names have the part's, and others are of no part, or two become one.
        """
        own = {name: each for name, each in self.tensors.items() if name.startswith(f"{part}.")}
        strangers = sorted(name for name in self.tensors if name.partition(".")[0] not in PARTS)
        if own and strangers:
            message = f"it holds {counted(len(strangers), 'tensor')} of no part, {strangers[0]!r} among them"
            raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
        found: dict[str, Tensor] = {}
        for name, each in (own or self.tensors).items():
            current = current_name(part, name)
            if current in found:
                raise UnsafeModelError(f"it holds {current!r} twice", reason="WEIGHTS_AMBIGUOUS")
            if current is not None:
                found[current] = each
        return found


@dataclass(eq=False)
class Imported:
    """What becomes of a file: tensors by the name of the file that they go into, and what the user should know."""

    files: dict[str, dict[str, Tensor]]
    notes: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    """More for the catalogue's entry, by key."""


Importer = Callable[[Source], Imported]
_IMPORTERS: dict[str, Importer] = {}


def importer(kind: str) -> Callable[[Importer], Importer]:
    """Register the importer of a kind, as `--as` names it."""

    def register(function: Importer) -> Importer:
        _IMPORTERS[kind] = function
        return function

    return register


def importers() -> dict[str, Importer]:
    """Return every importer by its kind."""
    # Each module registers its importer when it is imported.
    import unerase_backend.importing.importers as _  # noqa: F401

    return dict(_IMPORTERS)
