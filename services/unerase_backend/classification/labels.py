"""The labels of image classifiers: which classes a text means, and what is wrong with a text that means none."""

import difflib
from collections.abc import Mapping, Sequence


def label_table(labels: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the classes that each text means: whole labels first, then synonyms that are not whole labels themselves.

    ImageNet has two classes "crane" and two "maillot". A text that means several classes keeps them all; `problems`
    refuses it.
    """
    table: dict[str, tuple[int, ...]] = {}
    for index, label in enumerate(labels):
        table[label] = (*table.get(label, ()), index)
    synonyms: dict[str, tuple[int, ...]] = {}
    for index, label in enumerate(labels):
        for synonym in dict.fromkeys(part.strip() for part in label.split(",")):
            if synonym:
                synonyms[synonym] = (*synonyms.get(synonym, ()), index)
    for synonym, classes in synonyms.items():
        table.setdefault(synonym, classes)
    return table


def label_problem(label: str, labels: Sequence[str], table: Mapping[str, tuple[int, ...]]) -> str:
    """Return why a text does not mean one of the classes `labels`, with their `label_table`; empty if it does."""
    classes = table.get(label, ())
    if not classes:
        near = difflib.get_close_matches(label, table, n=3)
        hint = f"; near ones: {', '.join(map(repr, near))}" if near else ""
        return f"the judge has no label {label!r}{hint}"
    if len(classes) > 1:
        whole = ", ".join(repr(labels[index]) for index in classes)
        return f"{label!r} means several labels; use the full text of one: {whole}"
    return ""
