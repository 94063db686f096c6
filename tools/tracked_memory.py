"""The memory that a call of a denoiser takes, by the storage of its tensors; nothing is computed.

The network runs on tensors without content (torch's FakeTensorMode), and every storage is counted from its creation to
its end, so that the peak of a network of any size is known within seconds. Kernels' own workspaces are not seen.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_READ_OF_PROMPTS = {"encoder_hidden_states", "pooled_projections"}

Inputs = Callable[[int, torch.dtype], dict[str, Any]]


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations create."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._end, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return made

    def _end(self, size: int) -> None:
        self.live -= size


def row_bytes(build: Callable[[], Any], inputs: Inputs, dtype: torch.dtype, *, gradient: bool) -> int:
    """Return the bytes of one more row in a call of a denoiser.

    Args:
        build: Makes the denoiser.
        inputs: Returns the arguments of its call, for so many rows.
        dtype: Of weights and inputs.
        gradient: Take the gradient towards what the denoiser reads of the prompts; the weights have none.
    """
    with FakeTensorMode():
        with _default(dtype):
            module = build().eval().requires_grad_(False)
        one, two = (_peak(module, inputs(rows, dtype), gradient) for rows in (1, 2))
    return two - one


def _peak(module: Any, given: dict[str, Any], gradient: bool) -> int:
    for name in _READ_OF_PROMPTS & given.keys():
        given[name].requires_grad_(gradient)
    storages = _Storages()
    with storages, torch.set_grad_enabled(gradient):
        output = module(**given, return_dict=False)[0]
        if gradient:
            output.square().mean().backward()
        return storages.peak


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def inputs_of(kind: str, config: Any, side: int, sequence_length: int) -> Inputs:
    """Return what makes the arguments of a call of a denoiser, for latents with `side` cells a side.

    Raises:
        KeyError: the class is not known.
    """

    def latents(rows: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, config["in_channels"], side, side, dtype=dtype)

    def text(rows: int, tokens: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "encoder_hidden_states": torch.empty(rows, tokens, width, dtype=dtype),
            "timestep": torch.empty(rows, dtype=dtype),
        }

    def unet(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        given = {"sample": latents(rows, dtype), **text(rows, 77, config["cross_attention_dim"], dtype)}
        if config.get("addition_embed_type"):
            added = {"text_embeds": torch.empty(rows, 1280, dtype=dtype), "time_ids": torch.empty(rows, 6, dtype=dtype)}
            given["added_cond_kwargs"] = added
        return given

    def sd3(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        pooled = torch.empty(rows, config["pooled_projection_dim"], dtype=dtype)
        tokens = text(rows, 77 + sequence_length, config["joint_attention_dim"], dtype)
        return {"hidden_states": latents(rows, dtype), "pooled_projections": pooled, **tokens}

    def flux(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        tokens = (side // 2) ** 2
        given = {
            "hidden_states": torch.empty(rows, tokens, config["in_channels"], dtype=dtype),
            "pooled_projections": torch.empty(rows, config["pooled_projection_dim"], dtype=dtype),
            "img_ids": torch.empty(tokens, 3, dtype=dtype),
            "txt_ids": torch.empty(sequence_length, 3, dtype=dtype),
            **text(rows, sequence_length, config["joint_attention_dim"], dtype),
        }
        return {**given, **({"guidance": torch.empty(rows)} if config["guidance_embeds"] else {})}

    def masked(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        mask = torch.empty(rows, sequence_length, dtype=dtype)
        tokens = text(rows, sequence_length, config["caption_channels"], dtype)
        return {"hidden_states": latents(rows, dtype), "encoder_attention_mask": mask, **tokens}

    def pixart(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        sizes = {"resolution": torch.empty(rows, 2, dtype=dtype), "aspect_ratio": torch.empty(rows, 1, dtype=dtype)}
        there = config["use_additional_conditions"]
        return {**masked(rows, dtype), "added_cond_kwargs": sizes if there else dict.fromkeys(sizes)}

    return {
        "UNet2DConditionModel": unet,
        "SD3Transformer2DModel": sd3,
        "FluxTransformer2DModel": flux,
        "PixArtTransformer2DModel": pixart,
        "SanaTransformer2DModel": masked,
    }[kind]
