"""Checks of a gate before anything is held against it: the same limits as those of a gate's file."""

from collections.abc import Collection

from unerase._gate_file import CLAUSES, CONCLUSIONS, LIMITS, MOST_CHARACTERS
from unerase.v1.gates_pb2 import Gate
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

ALLOWED = tuple(Conclusion.Value(f"CONCLUSION_{name.upper()}") for name in CONCLUSIONS)
"""The conclusions that a gate may name, the best first."""


def clauses_of(gate: Gate) -> list[str]:
    """Return the clauses that a gate has, by their fields."""
    # A text or conclusion without presence is a clause if it is not the default.
    given = {field.name for field, _ in gate.ListFields()}
    return [clause for clause in CLAUSES if clause in given]


def check_gate(gate: Gate, concepts: Collection[str] | None = None, *, field: str = "gate") -> None:
    """Check a gate's clauses and limits; `concepts` are those of the campaign, if known, and `field` is its place.

    Raises:
        InvalidRequestError: a field is out of its bounds, says nothing, or names a concept that the campaign lacks.
    """
    violations = [
        FieldViolation(f"{field}.{name}" if name else field, problem) for name, problem in _problems(gate, concepts)
    ]
    if violations:
        raise InvalidRequestError.of(*violations)


def _problems(gate: Gate, concepts: Collection[str] | None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if not clauses_of(gate):
        found.append(("", f"asks nothing; give at least one of {', '.join(CLAUSES)}"))
    if gate.worst_conclusion and gate.worst_conclusion not in ALLOWED:
        names = ", ".join(Conclusion.Name(allowed) for allowed in ALLOWED)
        found.append(("worst_conclusion", f"must be one of {names}"))
    given = {field.name: value for field, value in gate.ListFields()}
    for name, limit in LIMITS.items():
        if name in given and not limit.allows(given[name]):
            found.append((name, f"must be {limit.words}, not {given[name]:g}"))
    if gate.HasField("alpha") and not gate.no_worse_than:
        found.append(("alpha", "says nothing without no_worse_than"))
    if len(gate.no_worse_than) > MOST_CHARACTERS:
        found.append(("no_worse_than", f"must be the id of a campaign, at most {MOST_CHARACTERS} characters"))
    seen: set[str] = set()
    for index, concept in enumerate(gate.concepts):
        place = f"concepts[{index}]"
        if not 1 <= len(concept) <= MOST_CHARACTERS:
            found.append((place, f"must be the name of a concept, 1 to {MOST_CHARACTERS} characters"))
        elif concept in seen:
            found.append((place, f"{concept!r} is named twice"))
        elif concepts is not None and concept not in concepts:
            found.append((place, f"the campaign has no concept {concept!r}; its gate would stay undecided"))
        seen.add(concept)
    return found
