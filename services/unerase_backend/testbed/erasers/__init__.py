"""Erasers: methods that edit a model so that it no longer makes a concept.

A new one is one module here with a function under ``@eraser("name")``; it is trained, measured and shipped with the
others.
"""

import importlib
import pkgutil

from unerase_backend.testbed.erasers._registry import ERASERS, Concept, Eraser, Subject, eraser

__all__ = ["ERASERS", "Concept", "Eraser", "Subject", "eraser"]

# Every module registers what it holds.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
