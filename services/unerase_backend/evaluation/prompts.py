"""The prompts of concepts and cases: templates, whether a prompt names its concept, and a case's guidance.

A concept's prompt with a `{concept}` slot is a template. One without stands as it is, as the prompts of published lists
do: whatever needs a name in its prompt takes the templates, and a concept that has none takes those of its kind.

A prompt names a concept if it contains one of its names as a whole word (`runtime/spelling.py`).
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Case, Concept
from unerase_backend.catalogue import default_prompts
from unerase_backend.runtime.spelling import name_pattern

SLOT = "{concept}"


def guidance_of(unit: Unit, case: Case) -> float:
    """Return the guidance scale of a case's prompt: its own, or else the unit's."""
    return case.guidance_scale if case.HasField("guidance_scale") else unit.guidance_scale


def templates(concept: Concept) -> Sequence[str]:
    """Return a concept's prompts that have a slot for its name, or those of its kind if it has none."""
    return [prompt for prompt in concept.prompts if SLOT in prompt] or default_prompts(concept.kind)


def names_in(prompt: str, concept: Concept) -> list[str]:
    """Return the concept's names that stand in a prompt, as they are written there, in order."""
    return [found.group() for found in _pattern(concept.names).finditer(_composed(prompt))]


def with_name_replaced(prompt: str, concept: Concept, by: str | Callable[[re.Match[str]], str]) -> str:
    """Return a prompt with `by` in the place of each of the concept's names; unchanged if it contains none."""
    replacement = by if callable(by) else lambda _: by
    replaced, count = _pattern(concept.names).subn(replacement, _composed(prompt))
    return replaced if count else prompt


def _composed(text: str) -> str:
    # An accent may be a character of its own, as in lists written on a Mac; text encoders read both forms alike.
    return unicodedata.normalize("NFC", text)


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    # The longest name first: "egg timer" is not an "egg".
    patterns = (name_pattern(_composed(name)) for name in sorted(names, key=len, reverse=True))
    return re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE)
