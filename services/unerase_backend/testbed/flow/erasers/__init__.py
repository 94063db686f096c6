"""Erasers of the second world: the same methods as the first world's (`testbed/erasers`), on a joint-attention flow.

To add an eraser, add a module here with a function decorated with ``@eraser("name")``. It is then trained, measured and
shipped with the others.
"""

import importlib
import pkgutil

from unerase_backend.testbed.flow.erasers._registry import ERASERS, Concept, Eraser, Subject, eraser

__all__ = ["ERASERS", "Concept", "Eraser", "Subject", "eraser"]

# Importing a module registers its eraser.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
