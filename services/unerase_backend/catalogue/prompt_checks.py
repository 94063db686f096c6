"""What a text encoder does not read of prompts and labels: a name beyond its reach makes a prompt ask for nothing."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.embeddings import learned_words
from unerase_backend.catalogue.entries import ConceptEntry
from unerase_backend.catalogue.kinds import PROMPTS
from unerase_backend.catalogue.text_reach import Reading, TextReach, furthest, judge_reach, model_reaches
from unerase_backend.runtime.spelling import name_pattern

Reaches = Mapping[str, Sequence[TextReach]]
"""The reach of each text encoder of some models, by the models' names."""

_SHOWN = 60

PROMPT_CUT = "PROMPT_CUT"
"""The reason of a prompt whose name no encoder reads."""


def text_reaches(catalogue: Catalogue, model: str) -> tuple[TextReach, ...]:
    """Return how much of a prompt each of a model's text encoders reads.

    Raises:
        NotFoundError: there is no such model.
        UnsafeModelError: a tokenizer or the file of a learned word cannot be read.
        UnavailableError: it cannot be fetched from the hub.
    """
    parts = catalogue.model_parts(model)
    return model_reaches(parts.folder, learned_words(parts.embeddings), parts.max_sequence_length)


def label_reach(catalogue: Catalogue, judge: str) -> TextReach | None:
    """Return how much of a label a judge of kind clip reads; None for other kinds. Raises as `text_reaches`."""
    entry = catalogue.judge(judge)
    return judge_reach(entry.folder) if entry.kind == "clip" else None


@dataclass(frozen=True)
class Unread:
    """A prompt whose name stands where the encoder of `model` does not read."""

    keys: tuple[str | int, ...]
    """The place of the prompt in a concept's entry, as in ("prompts", 3)."""
    model: str
    description: str


def unread_names(entry: ConceptEntry, reaches: Reaches) -> list[Unread]:
    """Return every prompt of a concept that puts its longest name beyond the reach of a model's text encoder."""
    fields = {"prompts": entry.prompts, "held_out_prompts": entry.held_out_prompts}
    places = [(key, index, template) for key, given in fields.items() for index, template in enumerate(given)]
    if not entry.prompts:
        places += [("names", 0, template) for template in PROMPTS.get(entry.kind, ())]
    found = []
    for model, encoders in reaches.items():
        name = max(entry.names, key=lambda each: max(reach.read(each).tokens for reach in encoders))
        for key, index, template in places:
            place = index if key != "names" else entry.names.index(name)
            before, slot, _ = template.partition("{concept}")
            if not slot:
                continue
            text = template.replace("{concept}", name)
            reading = furthest(encoders, text)
            if reading.end < len(before) + len(name):
                found.append(Unread((key, place), model, unread_description(text, name, reading, model)))
    return found


def unread_everywhere(entry: ConceptEntry, reaches: Reaches) -> dict[tuple[str | int, ...], str]:
    """Return the prompts of `unread_names` that no model reads, each with a description, by place."""
    found: dict[tuple[str | int, ...], list[Unread]] = {}
    for each in unread_names(entry, reaches):
        found.setdefault(each.keys, []).append(each)
    return {keys: unread[0].description for keys, unread in found.items() if len(unread) == len(reaches)}


def reads_a_name(text: str, names: Sequence[str], reading: Reading) -> bool:
    """Return whether one of the `names` in a prompt is read whole, or the prompt contains none."""
    found = list(_any_of(names).finditer(text))
    return not found or any(match.end() <= reading.end for match in found)


def cut_labels(entry: ConceptEntry, reaches: Mapping[str, TextReach]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the labels that a judge does not read whole: keys within the concept's entry, and a description."""
    for judge, reach in reaches.items():
        for index, label in enumerate(entry.labels.get(judge, ())):
            reading = reach.read(label)
            if reading.cut:
                description = f"has {reading.tokens} tokens, and the judge reads {reading.limit}: {shortened(label)}"
                yield ("labels", judge, index), description


def unread_description(text: str, name: str, reading: Reading, model: str) -> str:
    """Return what is wrong with a prompt that is cut before the end of its name."""
    return (
        f"{shortened(text)} has {reading.tokens} tokens, the text encoder of {model!r} reads the first "
        f"{reading.limit}, and those end before {shortened(name)} does; shorten the prompt"
    )


def cut_note(readings: Sequence[tuple[str, Reading]], models: Sequence[str], what: str) -> str:
    """Return the sentence about prompts that are cut, given as `readings` with their texts; `what` names them."""
    text, longest = max(readings, key=lambda each: each[1].tokens)
    said = f"{len(readings)} of the {what} have" if len(readings) != 1 else f"One of the {what} has"
    return (
        f"{said} more than the {longest.limit} tokens that the text encoder of {' and '.join(models)} reads, and the "
        f"rest is not read; the longest has {longest.tokens}: {shortened(text)}."
    )


def shortened(text: str) -> str:
    """Return a text in quotes, with its middle left out if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}")


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    # Neither "delicate" nor "category" names a cat, and "cats" does.
    patterns = (name_pattern(name, plurals=True) for name in sorted(names, key=len, reverse=True))
    return re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE)
