"""Recognises that a device has run out of memory, and gives back what torch keeps of it."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a computation failed because the device, or the machine, has no more memory."""
    # Torch's allocator for a CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def release_memory() -> None:
    """Give memory that torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
