"""The classes of diffusers and transformers that models are built of; importing them takes seconds.

They are imported when a model is first looked at, or by whoever prepares for that beforehand, and not when a process
starts. One thread imports at a time: modules that import each other in a circle must not be imported by two.
"""

import importlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

_LOCK = threading.Lock()
_USUAL = (
    ("diffusers", "AutoencoderKL"),
    ("diffusers", "DDIMScheduler"),
    ("diffusers", "UNet2DConditionModel"),
    ("transformers", "CLIPTextModel"),
    ("transformers", "CLIPTokenizer"),
)


def library_class(library: str, name: str) -> Any:
    """Return a class of diffusers or transformers, imported when it is first asked for.

    Raises:
        AttributeError: the library has no such class.
    """
    with _LOCK:
        return getattr(importlib.import_module(library), name)


def prepared_libraries() -> Iterator[Callable[[], object]]:
    """Yield, step by step, what imports what most models need, before the first one comes."""
    for library, name in _USUAL:
        yield partial(library_class, library, name)


def prepare_libraries() -> None:
    """Import what most models need."""
    for step in prepared_libraries():
        step()
