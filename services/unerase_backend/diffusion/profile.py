"""The numerics profile: everything that determines the bits of a result besides the request.

Within one profile a trajectory gives the same bits on any worker, whatever shares its batch. Across profiles with the
same source, results agree within a tolerance.
"""

import os
import platform
from importlib.metadata import version

import torch

from unerase_backend.diffusion.shapes import TEXT_ROWS
from unerase_backend.runtime import source

_SOURCE_DIGITS = 16
_LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "pillow")


def numerics_profile(
    device: torch.device, dtype: torch.dtype, threads: int, batch_rows: int, decode_batch: int, small: str
) -> str:
    """Return the profile of a worker that makes pictures, one line; `small` names what computes small modules."""
    computing = computing_profile(device, dtype, threads, unet=batch_rows, vae=decode_batch, text=TEXT_ROWS)
    return f"source={source.PICTURES[:_SOURCE_DIGITS]} {computing} small={small}"


def computing_profile(device: torch.device, dtype: torch.dtype, threads: int, **batches: int) -> str:
    """Return what fixes every bit of a computation beside its source, one line; `batches` are its batch shapes."""
    return " ".join(
        [
            *(f"{name}={rows}" for name, rows in batches.items()),
            f"dtype={str(dtype).removeprefix('torch.')}",
            f"device={device_class(device)}",
            f"threads={threads}",
            *(f"{name}={release}" for name, release in library_versions().items()),
        ]
    )


def device_class(device: torch.device) -> str:
    """Return the kind of device that computes, as in "cpu/x86_64/AVX2"."""
    if device.type == "cpu":
        return f"cpu/{platform.machine()}/{torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type}/{torch.cuda.get_device_name(device).replace(' ', '-')}"


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that affect a result."""
    return {name: version(name) for name in _LIBRARIES}


def hardware(device: torch.device, threads: int) -> dict[str, str]:
    """Return the machine's description for the manifest of a report."""
    return {"device": device_class(device), "torch_threads": str(threads), "cpus": str(os.cpu_count())}
