"""The memory of a row in a call of the denoiser: linear in the tokens of an image and in the width of the network.

    a row without gradients        tokens * width * bytes of `row`
    a row kept for its gradient    tokens * width * bytes of `gradient`

For a UNet tokens are the cells of the latents, and the width is that of the first block. For a transformer they are the
patches of the latents, with the tokens of text that share its attention, and the width is heads times their dimension;
`gradient` there grows with the number of layers.

The bytes of UNets with one layer of attention a block were measured on a CPU at the size of Stable Diffusion 1.4, those
of all others by the storage of tensors at published sizes (`python -m tools.family_memory --measure`,
docs/real-models.md). Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unerase_backend.catalogue.text_reach import CLIP_TOKENS

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes of a computation, each with the bytes of one value."""

_CROSS_ATTENTION = 0.1
"""Of a token of text that is read by cross-attention: it costs keys and values, and no other layer."""


@dataclass(frozen=True)
class Bytes:
    """Bytes for each token and unit of width, by the number type."""

    float32: float
    half: float
    """In 16 bits."""

    def of(self, dtype: str) -> float:
        """Return the bytes in a number type."""
        return self.float32 if DTYPE_BYTES[dtype] == 4 else self.half

    def times(self, factor: float) -> "Bytes":
        """Return the bytes of `factor` times as much."""
        return Bytes(self.float32 * factor, self.half * factor)


@dataclass(frozen=True)
class RowMemory:
    """What a row of one denoiser takes."""

    width: int
    tokens: float
    row: Bytes
    gradient: Bytes

    def row_bytes(self, dtype: str) -> float:
        """Return the bytes of a row without gradients."""
        return self.tokens * self.width * self.row.of(dtype)

    def gradient_row_bytes(self, dtype: str) -> float:
        """Return the bytes of a row whose values are kept for the gradient."""
        return self.tokens * self.width * self.gradient.of(dtype)


@dataclass(frozen=True)
class _Transformer:
    row: Bytes
    layer: Bytes
    """Kept by one layer for the gradient."""
    normed: Bytes | None = None
    """The same where queries and keys are normalised."""
    text: float = 1.0
    """Of a token of text, beside one of the image."""
    clip: bool = False
    """Whether the tokens of CLIP are read beside those of T5."""
    packed: int = 1
    """Cells of latents on a side of one token, beside the patches of the configuration."""


_UNET, _UNET_GRADIENT = Bytes(113.0, 69.0), Bytes(1102.0, 552.0)
# With several layers of attention in a block, and none in the first, as in SDXL: measured with 10 layers.
_DEEP_UNET = Bytes(63.2, 31.6)
_DEEP_UNET_REST, _DEEP_UNET_LAYER = Bytes(520.7, 260.6), Bytes(73.1, 36.6)

_TRANSFORMERS = {
    "SD3Transformer2DModel": _Transformer(Bytes(50.0, 25.0), Bytes(57.2, 28.7), Bytes(65.0, 41.0), clip=True),
    "FluxTransformer2DModel": _Transformer(Bytes(62.0, 32.0), Bytes(57.0, 32.6), packed=2),
    "PixArtTransformer2DModel": _Transformer(Bytes(49.0, 24.5), Bytes(50.0, 25.0), text=_CROSS_ATTENTION),
    "SanaTransformer2DModel": _Transformer(Bytes(59.0, 29.5), Bytes(131.0, 70.0), text=_CROSS_ATTENTION),
}
# Of a class that was not measured: the most of each.
_OTHER = _Transformer(Bytes(62.0, 32.0), Bytes(131.0, 70.0), clip=True)
# Of a second attention of the image alone, as in Stable Diffusion 3.5 medium.
_DUAL_LAYER = 0.5


def row_memory(kind: str, config: Mapping[str, Any], side: int, sequence_length: int) -> RowMemory:
    """Return what a row of a denoiser takes.

    Args:
        kind: Its class, as in "SD3Transformer2DModel".
        config: Its configuration.
        side: Cells on a side of the latents.
        sequence_length: Tokens of a prompt in a text encoder without a length of its own, such as T5.

    Raises:
        KeyError, TypeError, ValueError: the configuration lacks what is needed.
    """
    if "block_out_channels" in config:
        return _unet(config, side)
    known = _TRANSFORMERS.get(kind, _OTHER)
    patch = int(config["patch_size"]) * known.packed
    text = (sequence_length + CLIP_TOKENS * known.clip) * known.text
    layers = int(config["num_layers"]) + int(config.get("num_single_layers") or 0)
    dual = len(config.get("dual_attention_layers") or ()) * _DUAL_LAYER
    layer = known.normed if known.normed is not None and config.get("qk_norm") else known.layer
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    return RowMemory(width, (side // patch) ** 2 + text, known.row, layer.times(layers + dual))


def _unet(config: Mapping[str, Any], side: int) -> RowMemory:
    channels = config["block_out_channels"]
    layers = config.get("transformer_layers_per_block") or 1
    if not isinstance(layers, Sequence) or max(map(_most, layers)) <= 1:
        return RowMemory(int(channels[0]), side * side, _UNET, _UNET_GRADIENT)
    kept = _attention(config, [int(each) for each in channels], list(map(_most, layers)))
    rest, layer = _DEEP_UNET_REST, _DEEP_UNET_LAYER.times(kept)
    gradient = Bytes(rest.float32 + layer.float32, rest.half + layer.half)
    return RowMemory(int(channels[0]), side * side, _DEEP_UNET, gradient)


def _attention(config: Mapping[str, Any], channels: Sequence[int], layers: Sequence[int]) -> float:
    """Return the layers of attention, each by its cells and channels beside those of the first block."""
    of_block = int(config.get("layers_per_block") or 2)
    found = 0.0
    for level, kind in enumerate(config["down_block_types"]):
        if "CrossAttn" in kind:
            # As many blocks on the way down, and one more on the way up.
            found += (2 * of_block + 1) * layers[level] * channels[level] / channels[0] / (1 << 2 * level)
    last = len(channels) - 1
    return found + layers[last] * channels[last] / channels[0] / (1 << 2 * last)


def _most(layers: Any) -> int:
    return max(map(int, layers)) if isinstance(layers, Sequence) else int(layers)
