"""Loads a transformers model and its image processor from a folder in the layout of the model hub.

Only safetensors are loaded, nothing comes from the network, and no code of the folder runs. A checkpoint that lacks a
weight is refused, because that weight would be random. Image processors are those for PIL, which need no torchvision.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor

from unerase_backend.classification.weights import checked_weights
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError


def load_model(model_class: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the folder's model, frozen and in evaluation mode.

    Its weights may be whole, in shards or a variant (`catalogue.model_files`), of transformers 4 or 5.

    Raises:
        UnsafeModelError: there are no safetensors, or they do not hold every weight of the model.
    """
    weights = checked_weights(folder)
    named = ", ".join(path.name for path in weights.files[:3]) + (", ..." if len(weights.files) > 3 else "")
    try:
        model, loading = model_class.from_pretrained(
            folder,
            dtype=dtype,
            variant=weights.variant or None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        message = f"the weights in {named} do not load as {model_class.__name__}"
        raise UnsafeModelError(message, reason="WEIGHTS_UNREADABLE") from error
    left_out = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if left_out:
        raise UnsafeModelError(
            f"the weights in {named} lack {counted(len(left_out), 'tensor')} of config.json's model, "
            f"{left_out[0]} among them",
            reason="WEIGHTS_INCOMPLETE",
        )
    return model.to(device).eval().requires_grad_(False)


def load_image_processor(folder: Path) -> Callable[[NDArray[np.uint8]], Tensor]:
    """Return a function from one picture, (height, width, 3) uint8, to the model's pixel values, (3, height, width).

    Raises:
        UnsafeModelError: the folder names no image processor that runs without torchvision.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise UnsafeModelError("the judge has no usable image processor", reason="IMAGE_PROCESSOR") from error
    if processor.backend != "pil":
        raise UnsafeModelError("the judge's image processor needs torchvision", reason="IMAGE_PROCESSOR")

    def process(picture: NDArray[np.uint8]) -> Tensor:
        values: Tensor = processor(images=picture, input_data_format="channels_last", return_tensors="pt").pixel_values
        return values[0]

    return process


@torch.inference_mode()
def in_fixed_batches(forward: Callable[[Tensor], Tensor], values: Sequence[Tensor], batch_size: int) -> Tensor:
    """Return `forward` of the values, row by row, (values, features); every call has the shape (batch_size, ...).

    The last batch is filled up by repeating its first row, so that a row's bits do not depend on what shares its batch.
    """
    rows: list[Tensor] = []
    for start in range(0, len(values), batch_size):
        chunk = list(values[start : start + batch_size])
        filled = torch.stack(chunk + [chunk[0]] * (batch_size - len(chunk)))
        rows.append(forward(filled)[: len(chunk)])
    return torch.cat(rows)
