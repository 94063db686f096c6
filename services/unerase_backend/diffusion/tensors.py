"""Tensors as messages: float32, little-endian, row by row."""

import numpy as np
import torch
from torch import Tensor

from unerase.v1 import types_pb2
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


def to_message(tensor: Tensor) -> types_pb2.Tensor:
    """Return the message of a tensor; its values become float32."""
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return types_pb2.Tensor(shape=values.shape, values=values.astype("<f4").tobytes())


def from_message(message: types_pb2.Tensor, field: str, shape: tuple[int | None, ...]) -> Tensor:
    """Return the tensor of a message, float32 on the CPU.

    `shape` is the required shape; None stands for any length of at least 1.

    Raises:
        InvalidRequestError: at `field`: the shape is wrong, or a value is missing or not finite.
    """
    actual = tuple(message.shape)
    fits = len(actual) == len(shape) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(actual, shape, strict=True)
    )
    if not fits:
        wanted_shape = tuple("any" if wanted is None else wanted for wanted in shape)
        raise InvalidRequestError.of(FieldViolation(field, f"must have the shape {wanted_shape}, not {actual}"))
    if len(message.values) != 4 * int(np.prod(actual)):
        raise InvalidRequestError.of(FieldViolation(field, "must hold 4 bytes a value"))
    values = np.frombuffer(message.values, dtype="<f4").reshape(actual)
    if not np.isfinite(values).all():
        raise InvalidRequestError.of(FieldViolation(field, "must be finite"))
    return torch.from_numpy(values.astype(np.float32))
