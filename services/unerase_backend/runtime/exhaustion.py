"""Recognises that a device has run out of memory, and gives back what torch keeps of it."""

import torch

# Of torch, and of onnxruntime, whose error is no RuntimeError of Python's.
_WORDS = ("can't allocate memory", "bad_alloc", "Failed to allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a computation failed because the device, or the machine, has no more memory."""
    # The allocators of a CPU have no error of their own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        (isinstance(error, RuntimeError) or type(error).__name__ == "RuntimeException")
        and any(words in str(error) for words in _WORDS)
    )


def release_memory() -> None:
    """Give memory that torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
