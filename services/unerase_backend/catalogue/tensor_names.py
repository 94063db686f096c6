"""The names of tensors as today's diffusers and transformers have them, for files of older releases and of trainers.

* transformers 4 named a text encoder's tensors `text_model.*`, and stored `embeddings.position_ids`, which is computed
  today.
* diffusers before 0.20 named the layers of attention without a prompt `query`, `key`, `value` and `proj_attn`.
* A tensor that a part uses at two places has two names, and files hold it under either or both.
* Trainers store a part with its name before each tensor (`unet.`, `text_encoder.`, `vae.`), or with what PyTorch puts
  there when it wraps a module (`module.`, `_orig_mod.`).
"""

import re
from collections.abc import Mapping

_WRAPPERS = ("module.", "_orig_mod.")
_COMPUTING = ("CLIPTextModel", "CLIPTextModelWithProjection", "Gemma2Model", "PixArtTransformer2DModel")
UNUSED = "text_projection.weight"
"""A text encoder's tensor that no picture depends on: it projects what the encoder makes of a whole prompt."""
UNUSED_OF: Mapping[str, str] = {
    "CLIPTextModel": UNUSED,
    # It stood for no prompt while PixArt was trained.
    "PixArtTransformer2DModel": "caption_projection.y_embedding",
}
"""By class, a tensor that files hold and no picture depends on."""
_COMPUTED = ("embeddings.position_ids", "rotary_emb.inv_freq", "pos_embed.pos_embed")
TIED: Mapping[str, Mapping[str, str]] = {"T5EncoderModel": {"encoder.embed_tokens.weight": "shared.weight"}}
"""By class, the further names of a tensor that has two, of which files hold either or both, with the first."""
_OLD_ATTENTION = re.compile(
    r"(?P<block>.*\battentions\.\d+)\.(?P<layer>query|key|value|proj_attn)\.(?P<kind>weight|bias)"
)
_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current_name(part: str, name: str, kind: str = "") -> str | None:
    """Return today's name of a tensor of a part; None if today it is computed.

    `kind` is the part's class; by default that of Stable Diffusion 1 and 2.
    """
    kind = kind or ("CLIPTextModel" if part == "text_encoder" else "")
    prefixes = (*_WRAPPERS, f"{part}.", *(["text_model."] if kind == "CLIPTextModel" else []))
    shorter = True
    while shorter:
        shorter = False
        for prefix in prefixes:
            if name.startswith(prefix):
                name, shorter = name.removeprefix(prefix), True
    if kind in _COMPUTING:
        return None if name.endswith(_COMPUTED) else name
    if kind in TIED:
        return TIED[kind].get(name, name)
    if old := _OLD_ATTENTION.fullmatch(name):
        return f"{old['block']}.{_LAYERS[old['layer']]}.{old['kind']}"
    return name


def fits(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether a stored tensor fills one of the wanted shape.

    A linear layer and a convolution of one pixel hold the same numbers: (out, in) and (out, in, 1, 1).
    """
    return stored == wanted or ({len(stored), len(wanted)} == {2, 4} and _flat(stored) == _flat(wanted))


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape
