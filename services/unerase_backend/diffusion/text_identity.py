"""What tells how a model reads prompts from how others do: its family, text encoders, tokenizers and lengths."""

import hashlib
from collections.abc import Sequence

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase.v1.models_pb2 import Model
from unerase_backend.catalogue.backbone_kinds import Role, denoiser_of, of_role
from unerase_backend.catalogue.model_check import ModelSource


def text_digest(source: ModelSource, described: Model, changes: Sequence[ModelChange]) -> str:
    """Return what models have in common that give every prompt the same encoding, bit for bit, in one number type.

    Args:
        source: The model's files.
        described: Its description, with the digests of all files of weights.
        changes: What is changed beside; an interpolation moves text encoders too.
    """
    digest = hashlib.sha256(f"{source.kind.family} {source.max_sequence_length} {source.resolution}".encode())
    digest.update(f" {source.kind.sequence_length_of(source.index)} ".encode())
    digest.update(repr(sorted((key, value) for key, value in source.index.items() if not key.startswith("_"))).encode())
    encoders = of_role(source.kind.parts, Role.TEXT_ENCODER)
    for file in described.files:
        if file.component in encoders:
            digest.update(file.SerializeToString(deterministic=True))
    # What the denoiser reads beside the text encoders' states depends on it, as a guidance scale.
    for part in (*encoders, denoiser_of(source.kind.parts)):
        known = source.configs.get(part, {}).items()
        digest.update(repr(sorted((key, value) for key, value in known if not key.startswith("_"))).encode())
    for part in of_role(source.kind.parts, Role.TOKENIZER):
        for path in sorted((source.folder / part).glob("*")):
            if path.is_file():
                digest.update(f"{part}/{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    for change in changes:
        if change.WhichOneof("kind") == "interpolation":
            digest.update(change.SerializeToString(deterministic=True) + described.digest.encode())
    return digest.hexdigest()
