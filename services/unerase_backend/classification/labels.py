"""The labels of classifiers and detectors: which classes a text means, and what is wrong with one that means none."""

import difflib
from collections.abc import Iterable, Mapping, Sequence


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
        return f"the judge has no label {label!r}{_near(label, table)}"
    if len(classes) > 1:
        whole = ", ".join(repr(labels[index]) for index in classes)
        return f"{label!r} means several labels; use the full text of one: {whole}"
    return ""


def class_problem(label: str, classes: Sequence[str]) -> str:
    """Return why a text is none of a detector's classes; empty if it is one."""
    return "" if label in classes else f"the judge has no class {label!r}{_near(label, classes)}"


def _near(label: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(label, list(known), n=3)
    return f"; near ones: {', '.join(map(repr, near))}" if near else ""
