"""The judges of an audit that names none: those of the catalogue that know the concept.

The selector is the first judge of kind clip. Judge and second judge are the first two classifiers; detectors stand in
where there are too few classifiers, because a detector looks for parts and a classifier at the whole picture. Judges of
third parties' kinds are taken only by name. "First" is in the order of the catalogue's files.
"""

from collections.abc import Mapping, Sequence

from unerase_backend.catalogue.entries import ConceptEntry, JudgeEntry
from unerase_backend.catalogue.judge_files import DETECTOR
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import PreconditionError

SELECTORS = ("clip",)
FIELDS = ("selector", "judge", "second_judge")
DECIDING = ("classifier", DETECTOR)
"""In order of preference."""


def choose_judges(
    judges: Mapping[str, JudgeEntry],
    name: str = "",
    concept: ConceptEntry | None = None,
    given: Sequence[str] = ("", "", ""),
) -> tuple[str, str, str]:
    """Return selector, judge and second judge of the concept `name`.

    Those that are `given` stay as they are and are not taken twice; without a concept any judge will do.

    Raises:
        PreconditionError: too few judges of these kinds have labels for the concept; the metadata name the `field` of a
            request for which there is none.
    """
    chosen = list(given)
    for positions, kinds in (((0,), SELECTORS), ((1, 2), DECIDING)):
        known = [
            judge
            for kind in kinds
            for judge, entry in judges.items()
            if entry.kind == kind and (concept is None or concept.labels.get(judge))
        ]
        free = [judge for judge in known if judge not in given]
        open_positions = [position for position in positions if not chosen[position]]
        if len(free) < len(open_positions):
            field = FIELDS[open_positions[len(free)]]
            raise _too_few(judges, name if concept is not None else "", kinds, known, field)
        for position, judge in zip(open_positions, free, strict=False):
            chosen[position] = judge
    selector, first, second = chosen
    return selector, first, second


def _too_few(
    judges: Mapping[str, JudgeEntry], concept: str, kinds: Sequence[str], known: Sequence[str], field: str
) -> PreconditionError:
    kind = " or ".join(kinds)
    others = [judge for judge, entry in judges.items() if entry.kind in kinds and judge not in known]
    count = f"one judge of kind {kind}" if field == FIELDS[0] else f"two judges of kind {kind}"
    if not concept:
        message = f"the catalogue needs {count}, or the request must name three judges"
    else:
        message = f"the concept {concept!r} has labels for {_listed(known)} where an audit needs {count}; "
        message += f"add labels for {_listed(others)}, or name the judges" if others else "add one, or name the judges"
    return PreconditionError(message, reason="JUDGES_MISSING", metadata={"concept": concept, "field": field})


def _listed(names: Sequence[str]) -> str:
    if len(names) > 5:
        return f"{', '.join(map(repr, names[:5]))} and {counted(len(names) - 5, 'other')}"
    return ", ".join(map(repr, names)) or "none"
