"""What a model of the catalogue is loaded from: a pipeline folder, and what the entries from base to model change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unerase.v1.models_pb2 import WeightFile
from unerase_backend.catalogue import digests, lora
from unerase_backend.catalogue.digests import Digest, HashedFile
from unerase_backend.catalogue.entries import EmbeddingEntry, LoraEntry, ModelEntry
from unerase_backend.catalogue.part_names import REPLACEABLE


@dataclass(frozen=True)
class ModelParts:
    """What a model is loaded from: a pipeline folder, and what changes its parts, in order: files that replace tensors,
    and LoRAs; last come the words that are learned beside the vocabulary.
    """

    folder: Path
    changes: Mapping[str, tuple[Path | LoraEntry, ...]] = field(default_factory=dict)
    """What changes each part, in order. A LoRA is a change of every part, of which it may change nothing."""
    embeddings: tuple[EmbeddingEntry, ...] = ()
    max_sequence_length: int | None = None
    """As the pipeline's entry gives it."""

    @property
    def loras(self) -> tuple[LoraEntry, ...]:
        """The LoRAs that are merged into the weights."""
        found = [change for changes in self.changes.values() for change in changes if isinstance(change, LoraEntry)]
        return tuple(dict.fromkeys(found))

    def changed(self, entry: ModelEntry) -> "ModelParts":
        """Return this model as an entry changes it."""
        replacing = entry.replacing
        changes = {
            part: (*self.changes.get(part, ()), *([replacing[part]] if part in replacing else []), *entry.lora)
            for part in REPLACEABLE
        }
        length = self.max_sequence_length if entry.max_sequence_length is None else entry.max_sequence_length
        return ModelParts(self.folder, changes, (*self.embeddings, *entry.embedding), length)


def added_files(entry: ModelEntry, digest: Digest) -> tuple[list[HashedFile], list[WeightFile]]:
    """Return the files that an entry adds to a model, LoRAs and embeddings, and what each is of a part.

    Raises:
        UnsafeModelError: a LoRA cannot be read, or a file is not the one whose digest the entry names.
    """
    files: list[HashedFile] = []
    weights: list[WeightFile] = []
    for place, each in enumerate(entry.lora):
        file = digests.hash_file(f"lora {place} {each.scale!r}", each.file, digest)
        digests.check_pinned([file], {"lora": each.sha256} if each.sha256 else {})
        files.append(file)
        weights += [
            WeightFile(component=part, digest=file.digest, size_bytes=file.size_bytes, lora_scale=each.scale)
            for part in lora.parts_of(each.file)
        ]
    for place, learned in enumerate(entry.embedding):
        file = digests.hash_file(f"embedding {place} {learned.token}", learned.file, digest)
        digests.check_pinned([file], {"embedding": learned.sha256} if learned.sha256 else {})
        files.append(file)
        part = WeightFile(component="text_encoder", digest=file.digest, size_bytes=file.size_bytes)
        part.token = learned.token
        weights.append(part)
    return files, weights
