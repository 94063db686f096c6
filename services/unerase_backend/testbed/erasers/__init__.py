"""Erasers: methods that edit a model so that it no longer makes a concept.

A new one is one module here with a function under ``@eraser("name")``; it is trained, measured and shipped with the
others.
"""

from unerase_backend.testbed.erasers._registry import ERASERS, Concept, Eraser, Subject, eraser
from unerase_backend.testbed.erasers.esd_x import erase_esd_x
from unerase_backend.testbed.erasers.redirected import redirect, single_token
from unerase_backend.testbed.erasers.uce import erase_uce

__all__ = ["ERASERS", "Concept", "Eraser", "Subject", "erase_esd_x", "erase_uce", "eraser", "redirect", "single_token"]
