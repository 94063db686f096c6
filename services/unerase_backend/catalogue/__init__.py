"""The catalogue: the models, judges and concepts that a request may name; nothing else can be loaded."""

from unerase._prompt_pack import MAX_PROMPT_BYTES
from unerase_backend.catalogue.catalogue import EMBEDDED, Catalogue
from unerase_backend.catalogue.custom import CustomConcept, check_concept
from unerase_backend.catalogue.entries import (
    GUIDANCE_SCALES,
    MAX_CONCEPT_NAMES,
    MAX_CONCEPT_PROMPTS,
    MAX_STEPS,
    ConceptEntry,
    JudgeEntry,
    ModelEntry,
)
from unerase_backend.catalogue.kinds import default_prompts

__all__ = [
    "EMBEDDED",
    "GUIDANCE_SCALES",
    "MAX_CONCEPT_NAMES",
    "MAX_CONCEPT_PROMPTS",
    "MAX_PROMPT_BYTES",
    "MAX_STEPS",
    "Catalogue",
    "ConceptEntry",
    "CustomConcept",
    "JudgeEntry",
    "ModelEntry",
    "check_concept",
    "default_prompts",
]
