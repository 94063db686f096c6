"""`--as embedding`: a learned embedding of textual inversion, of AUTOMATIC1111's program or of diffusers."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unerase_backend.importing.architecture import Architecture
from unerase_backend.importing.reading import contents
from unerase_backend.importing.registry import Imported, Source, importer
from unerase_backend.runtime.errors import UnsafeModelError

_PARAMETER = "string_to_param."


@importer("embedding")
def import_embedding(source: Source) -> Imported:
    """Return the embedding, (tokens, width), by its word."""
    names = set(source.tensors)
    if names & {"clip_l", "clip_g"}:
        what = "it is an embedding for several text encoders, as Stable Diffusion XL has, which is not imported"
        raise _refused(f"{what}: a catalogue's entry takes such a .safetensors file as it is (embedding, token)")
    own = {name: tensor for name, tensor in source.tensors.items() if name.startswith(_PARAMETER)}
    if not own and (contained := contents((contents(source.held) or {}).get("string_to_param"))):
        own = {_PARAMETER + str(name): each for name, each in contained.items() if isinstance(each, Tensor)}
    found = own or dict(source.tensors)
    if len(found) != 1:
        raise _refused(f"it holds {len(found)} embeddings, and one word has one")
    [(name, tensor)] = found.items()
    named = (contents(source.held) or {}).get("name")
    word = source.token or (named if name.startswith(_PARAMETER) or name == "emb_params" else name) or ""
    return Imported({"embedding": {_checked(word): _rows(name, tensor, source.architecture)}})


def import_words(words: Mapping[str, Tensor], architecture: Architecture, token: str) -> dict[str, dict[str, Tensor]]:
    """Return the embeddings of Custom Diffusion's words, a file for each: `embedding`, `embedding-2` and so on.

    Raises:
        UnsafeModelError: one is no embedding of the model, or `token` is given for several.
    """
    if token and len(words) > 1:
        raise _refused(f"it holds {len(words)} words, {', '.join(map(repr, words))}, and --token names one")
    return {
        f"embedding-{place}" if place > 1 else "embedding": {_checked(token or word): _rows(word, rows, architecture)}
        for place, (word, rows) in enumerate(words.items(), 1)
    }


def _rows(name: str, tensor: Tensor, architecture: Architecture) -> Tensor:
    rows = tensor[None] if tensor.dim() == 1 else tensor
    if rows.dim() != 2 or not rows.is_floating_point() or not rows.numel():
        raise _refused(f"{name!r} has the shape {tuple(tensor.shape)}, which is no embedding of words")
    shapes = architecture.shapes("text_encoder")
    width = shapes["embeddings.token_embedding.weight"][1] if shapes else rows.shape[1]
    if rows.shape[1] != width:
        raise _refused(f"its embedding has {rows.shape[1]} numbers for a word, and the model's text encoder {width}")
    return rows.to(torch.float32)


def _checked(word: object) -> str:
    if not isinstance(word, str) or not re.fullmatch(r"[^\s]{1,100}", word) or not word.isprintable():
        raise _refused("it does not say which word it stands for; give one by --token")
    return word


def _refused(message: str) -> UnsafeModelError:
    return UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
