"""The definition of a registered model: its entry, with absolute places, and the digests of all that it is read from.

A definition never changes. It is kept in the artefact store under its digest, and rooms know the model by the name
`model:DIGEST`, which no entry of a catalogue can have. What tenants call it is known to the coordinator alone.
"""

import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from unerase.v1.models_pb2 import Model
from unerase_backend.runtime.errors import PreconditionError

PREFIX = "model:"
NAME = re.compile(r"model:[0-9a-f]{64}")
"""What a registered model is called inside the backend."""
_FORM = 1


@dataclass(frozen=True)
class Definition:
    """What a registered model is."""

    entry: Mapping[str, Any]
    """As in a catalogue file, but each place is absolute, and a registered base is named `model:DIGEST`."""
    figures: tuple[float, int, int]
    """Guidance scale, steps and resolution, the base's included."""
    base_digest: str
    """The digest of the base; empty for a whole pipeline."""
    files: Mapping[str, Mapping[str, str]]
    """For each place of the entry, as it is written there, SHA-256 of every file that is read, by its path in it; the
    path is empty where the place is a file.
    """
    described: Model
    """The model's description, without its names."""

    @property
    def base(self) -> str:
        """The name of the base; empty for a whole pipeline."""
        return str(self.entry.get("base", ""))

    def to_bytes(self) -> bytes:
        """Return the bytes that are kept, the same for the same definition."""
        content = {
            "form": _FORM,
            "entry": self.entry,
            "figures": self.figures,
            "base_digest": self.base_digest,
            "files": self.files,
            "described": b64encode(self.described.SerializeToString(deterministic=True)).decode(),
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Definition":
        """Read a definition.

        Raises:
            PreconditionError: the bytes are not a definition that this version can read.
        """
        try:
            read = json.loads(content)
            if read["form"] != _FORM:
                raise ValueError("another form")
            guidance_scale, steps, resolution = read["figures"]
            return cls(
                entry=dict(read["entry"]),
                figures=(float(guidance_scale), int(steps), int(resolution)),
                base_digest=str(read["base_digest"]),
                files={place: dict(files) for place, files in read["files"].items()},
                described=Model.FromString(b64decode(read["described"])),
            )
        except (ValueError, KeyError, TypeError, AttributeError, DecodeError):
            message = "the definition of the registered model cannot be read; register the model again"
            raise PreconditionError(message, reason="DEFINITION_UNKNOWN") from None


def name_of(content: bytes) -> str:
    """Return the name of the model with a definition of these bytes."""
    return PREFIX + hashlib.sha256(content).hexdigest()


def digest_of(name: str) -> str:
    """Return the digest of the definition of `model:DIGEST`."""
    return name.removeprefix(PREFIX)


def is_registered(name: str) -> bool:
    """Whether a name is that of a registered model inside the backend."""
    return NAME.fullmatch(name) is not None
