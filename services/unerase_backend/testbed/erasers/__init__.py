"""Erasers: methods that edit a model so that it no longer makes a concept.

A new one is one module here with a function under ``@eraser("name")``; it is trained, measured and shipped with the
others.
"""

from unerase_backend.testbed.erasers._registry import ERASERS, Concept, Eraser, Subject, eraser
from unerase_backend.testbed.erasers.esd_u import erase_esd_u
from unerase_backend.testbed.erasers.esd_x import erase_esd_x
from unerase_backend.testbed.erasers.ga import erase_ga
from unerase_backend.testbed.erasers.rece import erase_rece
from unerase_backend.testbed.erasers.redirected import redirect, single_token
from unerase_backend.testbed.erasers.stereo import erase_stereo
from unerase_backend.testbed.erasers.task_vector import erase_task_vector
from unerase_backend.testbed.erasers.uce import erase_uce

__all__ = [
    "ERASERS",
    "Concept",
    "Eraser",
    "Subject",
    "erase_esd_u",
    "erase_esd_x",
    "erase_ga",
    "erase_rece",
    "erase_stereo",
    "erase_task_vector",
    "erase_uce",
    "eraser",
    "redirect",
    "single_token",
]
