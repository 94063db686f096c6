"""Whether the text encoders of an audit read its prompts: to the end of the concept's name, and to their own end."""

from collections.abc import Sequence

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import Case, Concept
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.prompt_checks import (
    PROMPT_CUT,
    cut_labels,
    cut_note,
    label_reach,
    reads_a_name,
    shortened,
    text_reaches,
)
from unerase_backend.catalogue.text_reach import Reading, TextReach, furthest
from unerase_backend.runtime.errors import MOST_NAMED, FieldViolation, InvalidRequestError

"""The reason of an error about a name that no encoder reads."""

LABEL_CUT = "LABEL_CUT"
"""The reason of an error about a label that a judge does not read whole."""


Encoders = list[tuple[list[str], tuple[TextReach, ...]]]


def encoders_of(spec: AuditSpec, catalogue: Catalogue) -> Encoders:
    """Return the text encoders of an audit's models, each with the names of the models that share its tokenizer.

    Raises:
        UnsafeModelError, UnavailableError: a tokenizer cannot be read or fetched.
    """
    found: Encoders = []
    for name in dict.fromkeys(filter(None, (spec.subject, spec.reference, spec.control))):
        reaches = text_reaches(catalogue, name)
        names = next((names for names, known in found if known is reaches), None)
        if names is None:
            found.append(([name], reaches))
        else:
            names.append(name)
    return found


def check_reach(field: str, concept: Concept, cases: Sequence[Case], encoders: Encoders) -> list[str]:
    """Return the notes on prompts that are cut after the name; `field` is the request's that names the concept.

    Raises:
        InvalidRequestError: the name in a prompt is beyond what an encoder reads.
    """
    kinds = {"prompts": "prompts of the cases", "held_out_prompts": "held-out prompts of the cases"}
    violations: dict[str, FieldViolation] = {}
    notes = []
    for models, reaches in encoders:
        said: set[str] = set()
        for key, what in kinds.items():
            cut: dict[str, Reading] = {}
            for case in cases:
                text = case.prompt if key == "prompts" else case.held_out_prompt
                reading = furthest(reaches, text)
                if not reading.cut or text in said:
                    continue
                if reads_a_name(text, concept.names, reading):
                    cut[text] = reading
                elif text not in violations:
                    violations[text] = FieldViolation(field, _description(key, case, concept, models, reading))
            said |= set(cut)
            if cut:
                notes.append(cut_note(list(cut.items()), models, f"{what} of {concept.name!r}"))
    if violations:
        error = InvalidRequestError.of(*list(violations.values())[:MOST_NAMED])
        error.reason = PROMPT_CUT
        raise error
    return notes


def notes_on_pack(concept: Concept, encoders: Encoders) -> list[str]:
    """Return the notes on prompts of a concept's pack that are cut."""
    notes = []
    for models, reaches in encoders:
        readings = {text: furthest(reaches, text) for kind in concept.pack.kinds for text in kind.prompts}
        if cut := [(text, reading) for text, reading in readings.items() if reading.cut]:
            notes.append(cut_note(cut, models, f"prompts of the pack of {concept.name!r}"))
    return notes


def _description(key: str, case: Case, concept: Concept, models: Sequence[str], reading: Reading) -> str:
    text = case.prompt if key == "prompts" else case.held_out_prompt
    templates = concept.prompts if key == "prompts" else concept.held_out_prompts
    filled = (index for index, each in enumerate(templates) if text in _filled(each, concept))
    place = next((f"{key}[{index}] of the concept {concept.name!r}" for index in filled), f"case {case.index}")
    return (
        f"{place} becomes {shortened(text)}, which has {reading.tokens} tokens; the text encoder of "
        f"{' and '.join(models)} reads the first {reading.limit}, and those end before the concept's name does; "
        "shorten the prompt"
    )


def _filled(template: str, concept: Concept) -> set[str]:
    return {template.replace("{concept}", name) for name in concept.names}


def check_labels(spec: AuditSpec, catalogue: Catalogue) -> None:
    """Check that the audit's CLIP judges read every label that they are given, those of other concepts included.

    Raises:
        InvalidRequestError: one is longer than what its judge reads.
        UnsafeModelError, UnavailableError: a tokenizer cannot be read or fetched.
    """
    judges = dict.fromkeys((spec.selector, spec.judge, spec.second_judge))
    reaches = {judge: reach for judge in judges if (reach := label_reach(catalogue, judge)) is not None}
    asked = {spec.concept: "spec.concept"} | {name: f"spec.placebos[{i}]" for i, name in enumerate(spec.placebos)}
    others = dict.fromkeys(catalogue.others(spec.concept), "spec.concept")
    violations = [
        FieldViolation(field, f"labels.{judge}[{index}] of the concept {name!r} {description}")
        for name, field in (others | asked).items()
        for (_, judge, index), description in cut_labels(catalogue.concept(name), reaches)
    ]
    if violations:
        error = InvalidRequestError.of(*violations[:MOST_NAMED])
        error.reason = LABEL_CUT
        raise error
