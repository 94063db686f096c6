"""What a model of the catalogue is loaded from: a pipeline folder, and what the entries from base to model change."""

from dataclasses import dataclass
from pathlib import Path

from unerase.v1.models_pb2 import WeightFile
from unerase_backend.catalogue import digests, lora
from unerase_backend.catalogue.digests import Digest, HashedFile
from unerase_backend.catalogue.entries import EmbeddingEntry, LoraEntry, ModelEntry


@dataclass(frozen=True)
class ModelParts:
    """What a model is loaded from: a pipeline folder, and what changes its parts, in order: files that replace tensors,
    and LoRAs; last come the words that are learned beside the vocabulary.
    """

    folder: Path
    unet: tuple[Path | LoraEntry, ...] = ()
    text_encoder: tuple[Path | LoraEntry, ...] = ()
    embeddings: tuple[EmbeddingEntry, ...] = ()

    @property
    def loras(self) -> tuple[LoraEntry, ...]:
        """The LoRAs that are merged into the weights."""
        return tuple(change for change in (*self.unet, *self.text_encoder) if isinstance(change, LoraEntry))

    def changed(self, entry: ModelEntry) -> "ModelParts":
        """Return this model as an entry changes it."""
        return ModelParts(
            self.folder,
            (*self.unet, *([entry.unet] if entry.unet else []), *entry.lora),
            (*self.text_encoder, *([entry.text_encoder] if entry.text_encoder else []), *entry.lora),
            (*self.embeddings, *entry.embedding),
        )


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
