"""Custom concepts: they arrive as messages, and follow the rules for entries of a catalogue file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from unerase._prompt_pack import MAX_PROMPT_BYTES
from unerase.v1.types_pb2 import Concept
from unerase_backend.catalogue.entries import (
    ConceptEntry,
    JudgeEntry,
    ModelEntry,
    problems_of_concept,
)
from unerase_backend.catalogue.kinds import KINDS, Kind
from unerase_backend.catalogue.packs import problems_of_pack
from unerase_backend.catalogue.places import FilePlaces
from unerase_backend.catalogue.reading import CatalogueFile
from unerase_backend.catalogue.spelled import indexed, said_of
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

_KIND_NAMES: dict[Kind, str] = {kind: name for name, kind in KINDS.items()}

# Every unit of an audit carries the concept, so it must be small.
MAX_BYTES = 256 * 1024
_MAX_JUDGES = most_items(Concept, "labels")


@dataclass(frozen=True)
class CustomConcept:
    """A concept as it was created: its message, digests of its pictures included, and the pictures' side in pixels."""

    concept: Concept
    side: int
    """0 if it has no pictures."""


def entry_of(concept: Concept, side: int = 0) -> ConceptEntry:
    """Return the entry that a catalogue file would hold.

    Raises:
        InvalidRequestError: a field breaks a rule of such entries; fields as in `concept.names[0]`.
    """
    size = concept.ByteSize()
    if size > MAX_BYTES:
        raise InvalidRequestError.of(FieldViolation("concept", f"must be at most {MAX_BYTES} bytes, not {size}"))
    judges = [labels.judge for labels in concept.labels]
    if len(judges) > _MAX_JUDGES:
        description = f"must be at most {_MAX_JUDGES}, not {len(judges)}"
        raise InvalidRequestError.of(FieldViolation("concept.labels", description))
    places = _places(judges)
    violations = [
        FieldViolation(f"concept.labels[{index}].judge", f"{judge!r} occurs twice")
        for index, judge in enumerate(judges)
        if places[judge] != index
    ]
    fields = {
        "kind": _KIND_NAMES.get(concept.kind, ""),
        "names": list(concept.names),
        "prompts": list(concept.prompts),
        "held_out_prompts": list(concept.held_out_prompts),
        "labels": {labels.judge: list(labels.labels) for labels in concept.labels},
        "alternatives": {each.judge: list(each.alternatives) for each in concept.labels if each.alternatives},
        "control": concept.control or None,
        "initial_token": concept.initial_token,
        "placebo": concept.placebo,
        # A message cannot tell "false" from "not said", which leaves it to the kind.
        **({"sensitive": True} if concept.sensitive else {}),
        **({"tile": side} if side else {}),
    }
    try:
        file = CatalogueFile.model_validate(
            {"concepts": {concept.name: fields}}, context={"places": FilePlaces(Path())}
        )
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            # Each begins with the section and the concept's own name, which is the key in a file.
            keys = problem["loc"][2:]
            description = said_of(problem)
            violations.append(FieldViolation(_field(keys, places), description))
        raise InvalidRequestError.of(*violations) from None
    if violations:
        raise InvalidRequestError.of(*violations)
    return file.concepts[concept.name]


def check_concept(
    concept: Concept,
    models: Mapping[str, ModelEntry],
    judges: Mapping[str, JudgeEntry],
    taken: Iterable[str],
) -> None:
    """Check the description of a concept that is to be created.

    Raises:
        InvalidRequestError: it breaks a rule, names something that does not exist, uses one of the names `taken`, or
            sets a field that only the backend may set.
    """
    violations = [
        FieldViolation(f"concept.{field}", "is set by the backend; leave it empty")
        for field in ("picture_digests", "near_miss_digests", "custom")
        if getattr(concept, field)
    ]
    try:
        entry = entry_of(concept)
    except InvalidRequestError as error:
        raise InvalidRequestError.of(*violations, *error.violations) from None
    # A prompt that is too long for a request for pictures would make every audit fail.
    longest = max((len(prompt.encode()) for prompt in (*entry.prompts, *entry.held_out_prompts)), default=0)
    name = max(len(name.encode()) for name in entry.names)
    if longest + name > MAX_PROMPT_BYTES:
        violations.append(
            FieldViolation("concept.prompts", f"must be at most {MAX_PROMPT_BYTES} bytes with the longest of the names")
        )
    violations += problems_of_pack(concept.pack, "concept.pack")
    if concept.name in taken:
        violations.append(FieldViolation("concept.name", f"the catalogue has a concept {concept.name!r}"))
    places = _places([labels.judge for labels in concept.labels])
    for keys, description in problems_of_concept(concept.name, entry, models, judges):
        # For labels the problem is their judge, which is the key.
        exact = (*keys, "[key]") if keys[0] == "labels" else keys
        violations.append(FieldViolation(_field(exact, places), description))
    if violations:
        raise InvalidRequestError.of(*violations)


def _places(judges: Sequence[str]) -> dict[str, int]:
    """Return the first index of each judge."""
    places: dict[str, int] = {}
    for index, judge in enumerate(judges):
        places.setdefault(judge, index)
    return places


def _field(keys: Iterable[int | str], places: Mapping[str, int]) -> str:
    """Return the message's field for the keys of a file's entry: labels are a list there, and a mapping in a file."""
    match list(keys):
        case ["[key]"]:
            return "concept.name"
        case ["labels", judge, "[key]"] if judge in places:
            return f"concept.labels[{places[str(judge)]}].judge"
        case ["labels", judge, *rest] if judge in places:
            return f"concept.labels[{places[str(judge)]}].labels{indexed(rest)}"
        case ["alternatives", judge, *rest] if judge in places:
            return f"concept.labels[{places[str(judge)]}].alternatives{indexed(rest)}"
        case others:
            return f"concept{indexed(others)}"
