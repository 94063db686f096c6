"""What the files of a catalogue ask its judges: the labels of its concepts, and those of guards that withhold by a
judge.
"""

from collections.abc import Iterator, Sequence

from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.file_findings import Finding
from unerase_backend.diffusion.guards.judge_checker import JudgeCheckerParameters


def labels_asked(catalogue: Catalogue, judge: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the labels that a judge is asked about, each list with the place where it stands."""
    for concept, entry in catalogue.concepts.items():
        if labels := entry.labels.get(judge, ()):
            yield catalogue.place("concepts", concept, "labels", judge), labels
    for place, parameters in _checkers(catalogue):
        if parameters.judge == judge:
            yield f"{place}.labels", parameters.labels


def guard_findings(catalogue: Catalogue) -> Iterator[Finding]:
    """Yield what is wrong with the judges by which guards withhold pictures."""
    for place, parameters in _checkers(catalogue):
        entry = catalogue.judges.get(parameters.judge)
        if entry is None:
            known = ", ".join(catalogue.judges) or "none"
            description = f"there is no judge {parameters.judge!r}; there are {known}"
            yield Finding(f"{place}.judge", description, "JUDGE_NOT_FOUND")
        elif entry.kind == "clip" and not parameters.alternatives:
            description = "must be given: a CLIP judge needs texts of what else the picture may show"
            yield Finding(f"{place}.alternatives", description, "LABELS_ALONE")
        elif entry.kind in ("classifier", "detector") and parameters.alternatives:
            description = f"must be left out: those of a {entry.kind} are its other classes"
            yield Finding(f"{place}.alternatives", description, "LABEL_UNKNOWN")


def _checkers(catalogue: Catalogue) -> Iterator[tuple[str, JudgeCheckerParameters]]:
    for name, entry in catalogue.models.items():
        for index, guard in enumerate(entry.guards):
            if isinstance(guard.parameters, JudgeCheckerParameters):
                yield catalogue.place("models", name, f"guards[{index}]"), guard.parameters
