"""The device memory that a model takes: its weights, and what each row and picture of a call needs beside them.

Weights are counted from the headers of their files, part by part. What a row of the denoiser takes is in
`row_memory.py`; a decoded picture takes pixels * width of the autoencoder's last block * bytes of `DECODED`.

A device's own libraries need more or less, so whoever plans with these figures leaves a margin. Nothing here imports
torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unerase_backend.catalogue.backbone_kinds import Role, backbone_of, denoiser_of, of_role
from unerase_backend.catalogue.families import DEFAULT
from unerase_backend.catalogue.model_files import present
from unerase_backend.catalogue.tensors import UNREADABLE, read_header
from unerase_backend.diffusion.row_memory import DTYPE_BYTES, RowMemory, row_memory
from unerase_backend.runtime.onnx_runtime import COPIES, GRADIENT_COPIES, LARGE, LARGEST_DECODED

DECODED = 22.7
"""Bytes of a decoded picture for each pixel and unit of width, in float32; measured on a CPU with AutoencoderKL."""

LARGE_TEXT_ENCODER = 1_000_000_000
"""Parameters from which a text encoder waits in main memory, beside a device with memory of its own. CLIP's largest has
0.7 billion, T5-XXL 4.8."""


@dataclass(frozen=True)
class ModelSize:
    """What the memory of a model depends on."""

    denoiser_parameters: int
    text_parameters: tuple[int, ...]
    """Of each text encoder."""
    autoencoder_parameters: int
    row: RowMemory
    """What a row of the denoiser takes."""
    autoencoder_width: int
    """Width of the autoencoder's last block."""
    pixels: int
    """Pixels of a picture."""

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of all weights; the autoencoder computes in float32 whatever the dtype."""
        return self.denoiser_parameters * DTYPE_BYTES[dtype] + self.text_bytes(dtype) + self.autoencoder_parameters * 4

    def text_bytes(self, dtype: str) -> int:
        """Return the bytes of the weights of all text encoders."""
        return sum(self.text_parameters) * DTYPE_BYTES[dtype]

    def held_bytes(self, dtype: str) -> int:
        """Return the bytes of the weights that stay on a GPU which samples: large text encoders wait elsewhere."""
        return self.weight_bytes(dtype) - sum(self._large) * DTYPE_BYTES[dtype]

    def visiting_bytes(self, dtype: str) -> int:
        """Return the bytes of the largest text encoder that comes to a GPU only to encode; 0 if there is none."""
        return max(self._large, default=0) * DTYPE_BYTES[dtype]

    def graph_bytes(self, dtype: str) -> int:
        """Return the most that the graphs of a denoiser and a decoder on a CPU hold (`model_graphs`); 0 without."""
        decoder = self.autoencoder_parameters if self.pixels <= LARGEST_DECODED**2 else 0
        return COPIES * (self.denoiser_parameters + decoder) * DTYPE_BYTES[dtype] if self._is_small(dtype) else 0

    def gradient_graph_bytes(self, dtype: str) -> int:
        """Return the most that a graph of the denoising loss and its gradient holds (`gradient_graph`)."""
        return GRADIENT_COPIES * self.denoiser_parameters * DTYPE_BYTES[dtype] if self._is_small(dtype) else 0

    def row_bytes(self, dtype: str) -> int:
        """Return the bytes of one more row in a call of the denoiser without gradients."""
        return math.ceil(self.row.row_bytes(dtype))

    def gradient_row_bytes(self, dtype: str) -> int:
        """Return the bytes of one more row in a call of the denoiser whose values are kept for the gradient."""
        return math.ceil(self.row.gradient_row_bytes(dtype))

    def decoded_bytes(self) -> int:
        """Return the bytes of one more picture in a call of the autoencoder, in float32."""
        return math.ceil(self.pixels * self.autoencoder_width * DECODED)

    def _is_small(self, dtype: str) -> bool:
        return dtype == "float32" and self.denoiser_parameters < LARGE

    @property
    def _large(self) -> list[int]:
        return [each for each in self.text_parameters if each >= LARGE_TEXT_ENCODER]


def pipeline_size(folder: Path, resolution: int, sequence_length: int | None = None) -> ModelSize:
    """Return the size of a pipeline folder whose pictures have `resolution` pixels a side.

    `sequence_length` replaces the family's own length of prompts in a text encoder such as T5.

    Raises:
        ValueError: a configuration or a file of weights cannot be read; the message names it.
    """
    index = _json(folder / "model_index.json")
    kind = backbone_of(str(index.get("_class_name"))) or backbone_of(DEFAULT)
    if kind is None:
        raise ValueError(f"{folder.name}: model_index.json names no family that can be read")
    parts = present(kind, index)
    denoiser, (autoencoder,) = denoiser_of(parts), of_role(parts, Role.AUTOENCODER)
    configs = [_json(folder / part / "config.json") for part in (denoiser, autoencoder)]
    counted = {part: folder_parameters(folder / part) for part, known in parts.items() if known.weighs}
    length = kind.sequence_length_of(index) if sequence_length is None else sequence_length
    try:
        return model_size(
            kind.parts[denoiser].kind,
            configs[0],
            configs[1],
            resolution,
            length,
            denoiser_parameters=counted[denoiser],
            text_parameters=tuple(counted[part] for part in of_role(parts, Role.TEXT_ENCODER)),
            autoencoder_parameters=counted[autoencoder],
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        what = f"the configuration of {denoiser} or {autoencoder} lacks {error}"
        raise ValueError(f"{folder.name}: {what}") from None


def model_size(
    kind: str,
    denoiser: Mapping[str, Any],
    autoencoder: Mapping[str, Any],
    resolution: int,
    sequence_length: int,
    **parameters: Any,
) -> ModelSize:
    """Return the size of a model by the denoiser's class, the configurations of both parts, and their parameters.

    Raises:
        KeyError, TypeError, IndexError, ValueError: a configuration lacks what is needed.
    """
    # Deep compression autoencoders name the blocks of both halves.
    blocks = autoencoder.get("decoder_block_out_channels") or autoencoder["block_out_channels"]
    side = resolution // 2 ** (len(blocks) - 1)
    return ModelSize(
        row=row_memory(kind, denoiser, side, sequence_length),
        autoencoder_width=int(blocks[0]),
        pixels=resolution * resolution,
        **parameters,
    )


def folder_parameters(folder: Path) -> int:
    """Return the number of parameters in the safetensors of a folder; errors as in `pipeline_size`.

    A tensor that several files hold, such as a variant in half precision, counts once.
    """
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            counts |= {name: tensor.parameters for name, tensor in read_header(file).tensors.items()}
        except UNREADABLE:
            raise ValueError(f"{folder.name}/{file.name} has no readable header of safetensors") from None
    return sum(counts.values())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path.parent.name}/{path.name} is missing or is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object")
    return content
