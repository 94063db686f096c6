"""Checks which prompts of a catalogue's concepts the text encoders of its models read."""

from collections.abc import Iterable, Iterator

from unerase_backend.catalogue import Catalogue, ConceptEntry
from unerase_backend.catalogue.file_findings import Finding
from unerase_backend.catalogue.kinds import PROMPTS
from unerase_backend.catalogue.prompt_checks import (
    PROMPT_CUT,
    Reaches,
    cut_note,
    text_reaches,
    unread_everywhere,
    unread_names,
)
from unerase_backend.catalogue.text_reach import Reading, furthest
from unerase_backend.runtime.errors import UneraseError

_MOST_NAMED = 3


def concept_findings(catalogue: Catalogue, models: Iterable[str], concepts: Iterable[str]) -> list[Finding]:
    """Return which prompts are cut by the text encoders of `models`.

    A name that no model reads is a problem. A name that some model does not read, and a prompt that is cut elsewhere,
    is a note. Models whose tokenizers cannot be read are left out; their own check says so.
    """
    reaches = _reaches(catalogue, models)
    found: list[Finding] = []
    for name in concepts if reaches else ():
        found += _concept_findings(catalogue, name, catalogue.concept(name), reaches)
    return found


def _concept_findings(catalogue: Catalogue, name: str, entry: ConceptEntry, reaches: Reaches) -> Iterator[Finding]:
    everywhere = unread_everywhere(entry, reaches)
    for keys, description in everywhere.items():
        yield Finding(catalogue.place("concepts", name, *map(str, keys)), description, PROMPT_CUT)
    partly = {each.keys: each for each in reversed(unread_names(entry, reaches)) if each.keys not in everywhere}
    for keys, unread in partly.items():
        place = catalogue.place("concepts", name, *map(str, keys))
        yield Finding(place, unread.description, PROMPT_CUT, problem=False)
    for readings, models in _cut(entry, reaches).items():
        note = cut_note(readings, _shown(models), "prompts")
        yield Finding(catalogue.place("concepts", name, "prompts"), note, PROMPT_CUT, problem=False)


def _cut(entry: ConceptEntry, reaches: Reaches) -> dict[tuple[tuple[str, Reading], ...], list[str]]:
    """Return the prompts that are cut, each with what is read of it, and the models that read so."""
    texts = [
        template.replace("{concept}", word)
        for template in (*(entry.prompts or PROMPTS.get(entry.kind, ())), *entry.held_out_prompts)
        for word in entry.names
    ]
    found: dict[tuple[tuple[str, Reading], ...], list[str]] = {}
    for model, encoders in reaches.items():
        readings = tuple((text, reading) for text in texts if (reading := furthest(encoders, text)).cut)
        if readings:
            found.setdefault(readings, []).append(model)
    return found


def _shown(models: list[str]) -> list[str]:
    more = [f"{len(models) - _MOST_NAMED} more"] if len(models) > _MOST_NAMED else []
    return [*models[:_MOST_NAMED], *more]


def _reaches(catalogue: Catalogue, models: Iterable[str]) -> Reaches:
    """Return the text encoders of the whole pipelines that `models` come from, and of the models with learned words;
    none is fetched from the hub.
    """
    found = {}
    for reader in dict.fromkeys(_reader(catalogue, name) for name in models):
        if not catalogue.model(catalogue.chain(reader)[-1]).fetched:
            continue
        try:
            found[reader] = text_reaches(catalogue, reader)
        except UneraseError:
            continue
    return found


def _reader(catalogue: Catalogue, name: str) -> str:
    """Return the first of a model and its bases whose prompts are read as the model's are."""
    chain = catalogue.chain(name)
    return next((each for each in chain if catalogue.model(each).embedding), chain[-1])
