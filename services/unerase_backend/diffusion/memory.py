"""The device memory that a model takes: its weights, and what each row and picture of a call needs beside them.

Weights are counted from the headers of their files. The rest is linear in the cells of the latents and in the width of
the first block, or in the pixels and the width of the VAE's last block:

    a row of the UNet             cells * channels * bytes of `ROW`
    a row kept for its gradient   cells * channels * bytes of `GRADIENT_ROW`
    a decoded picture             pixels * channels of the VAE * bytes of `DECODED`

The bytes were measured on a CPU at the size of Stable Diffusion 1.4 (docs/real-models.md). A device's own libraries
need more or less, so whoever plans with them leaves a margin. Nothing here imports torch.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unerase_backend.catalogue.tensors import UNREADABLE, read_header

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes of a computation, each with the bytes of one value."""

# By the bytes of a value.
ROW = {4: 113.0, 2: 69.0}
GRADIENT_ROW = {4: 1102.0, 2: 552.0}
DECODED = {4: 22.7, 2: 11.4}


@dataclass(frozen=True)
class ModelSize:
    """What the memory of a model depends on."""

    unet_parameters: int
    text_parameters: int
    vae_parameters: int
    channels: int
    """Width of the UNet's first block."""
    cells: int
    """Cells of the latents: height times width."""
    vae_channels: int
    """Width of the VAE's last block."""
    pixels: int
    """Pixels of a picture."""

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of all weights; the VAE computes in float32 whatever the dtype."""
        return (self.unet_parameters + self.text_parameters) * DTYPE_BYTES[dtype] + self.vae_parameters * 4

    def row_bytes(self, dtype: str) -> int:
        """Return the bytes of one more row in a call of the UNet without gradients."""
        return math.ceil(self.cells * self.channels * ROW[DTYPE_BYTES[dtype]])

    def gradient_row_bytes(self, dtype: str) -> int:
        """Return the bytes of one more row in a call of the UNet whose values are kept for the gradient."""
        return math.ceil(self.cells * self.channels * GRADIENT_ROW[DTYPE_BYTES[dtype]])

    def decoded_bytes(self) -> int:
        """Return the bytes of one more picture in a call of the VAE, in float32."""
        return math.ceil(self.pixels * self.vae_channels * DECODED[4])


def pipeline_size(folder: Path, resolution: int) -> ModelSize:
    """Return the size of a pipeline folder whose pictures have `resolution` pixels a side.

    Raises:
        ValueError: a configuration or a file of weights cannot be read; the message names it.
    """
    unet, vae = (_json(folder / part / "config.json") for part in ("unet", "vae"))
    try:
        channels, of_vae = unet["block_out_channels"], vae["block_out_channels"]
        side = resolution // 2 ** (len(of_vae) - 1)
        return ModelSize(
            unet_parameters=folder_parameters(folder / "unet"),
            text_parameters=folder_parameters(folder / "text_encoder"),
            vae_parameters=folder_parameters(folder / "vae"),
            channels=int(channels[0]),
            cells=side * side,
            vae_channels=int(of_vae[0]),
            pixels=resolution * resolution,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{folder.name}: the configuration of unet or vae lacks {error}") from None


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
