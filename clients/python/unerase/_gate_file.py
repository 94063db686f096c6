"""A gate in a YAML file: what every cell of a campaign must show so that a release may go on.

worst_conclusion: removed   # or avoided, or not_erased
excess: 0.10                # of any evaluation, by its one-sided 95 % bounds
least_destruction: 0.10
general_damage: 0.25
interference: 0.15
no_worse_than: c-7f2a       # id of an earlier campaign
alpha: 0.05                 # of no_worse_than
undecided: 0                # cells that may be undecided
concepts: [hourglass]       # only their cells

A clause that is left out asks nothing, and a gate has at least one. `python -m unerase._file_schemas gate` prints the
JSON Schema of such a file, docs/gate.schema.json, which is made from the same keys as what reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unerase._file_shape import no_such_key
from unerase._yaml_file import load_yaml
from unerase.v1.gates_pb2 import Gate
from unerase.v1.verdicts_pb2 import Conclusion

MAX_GATE_BYTES = 256 * 1024
MOST_CONCEPTS = 1024
MOST_CHARACTERS = 100
"""Of a concept's name, and of a campaign's id."""
MOST_UNDECIDED = 2**32 - 1
_CONCLUSION = "CONCLUSION_"
CONCLUSIONS = ("removed", "avoided", "not_erased")
"""The conclusions that a gate may name, the best first."""


@dataclass(frozen=True)
class Limit:
    """A number of a gate: above `above`, and under or at most `most`."""

    above: float
    most: float
    inclusive: bool
    description: str

    def allows(self, value: float) -> bool:
        """Whether a value is within the limits; one that is not a number is not."""
        return self.above < value and (value <= self.most if self.inclusive else value < self.most)

    @property
    def words(self) -> str:
        """The limits in words, as in "above 0 and at most 10"."""
        return f"above {self.above:g} and {'at most' if self.inclusive else 'under'} {self.most:g}"


LIMITS = {
    "excess": Limit(0, 1, False, "The most that the excess of any evaluation may be, by its one-sided 95 % bounds."),
    "least_destruction": Limit(0, 10, True, "The least that destruction must be, by its one-sided 95 % bounds."),
    "general_damage": Limit(0, 10, True, "The most that general damage may be, by its 95 % interval."),
    "interference": Limit(0, 1, False, "The most that the loss on other concepts may be, by its 95 % interval."),
    "alpha": Limit(
        0, 0.5, True, "The family-wise error of no_worse_than over all cells and evaluations; default 0.05."
    ),
}
"""The numbers of a gate, by their keys."""

CLAUSES = ("worst_conclusion", "excess", "least_destruction", "general_damage", "interference", "no_worse_than")
"""The keys that ask something of a cell; the others say how."""

KEYS = (*CLAUSES, "alpha", "undecided", "concepts")


def read_gate(path: str | Path) -> Gate:
    """Read a gate.

    Raises:
        ValueError: the file is not a gate; the message names the file, the line, the key and what is wrong there.
        OSError: the file cannot be read.
    """
    path = Path(path)
    content = path.read_bytes()
    if len(content) > MAX_GATE_BYTES:
        raise ValueError(f"{path}: must be at most {MAX_GATE_BYTES} bytes, not {len(content)}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: line {content.count(10, 0, error.start) + 1}: is not UTF-8") from None
    described, node = load_yaml(path, text)
    lines = _lines(path, node)
    try:
        return gate_of(described)
    except GateError as error:
        line = lines.get(error.key)
        raise ValueError(f"{path}: {f'line {line}: ' if line else ''}{error}") from None


class GateError(ValueError):
    """What is wrong with a gate, and the key where it is; the key is empty if it is the gate as a whole."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key


def gate_of(described: object) -> Gate:
    """Return the gate that a mapping describes, as in the key `gate` of a campaign's file.

    Raises:
        GateError: the mapping does not describe a gate.
    """
    if not isinstance(described, dict):
        raise GateError("", f"must be a mapping with the keys {', '.join(KEYS)}")
    for key in described:
        if key not in KEYS:
            raise GateError(str(key), no_such_key(str(key), KEYS))
    if not any(key in described for key in CLAUSES):
        raise GateError("", f"asks nothing; give at least one of {', '.join(CLAUSES)}")
    if "alpha" in described and "no_worse_than" not in described:
        raise GateError("alpha", "says nothing without no_worse_than")
    gate = Gate()
    if "worst_conclusion" in described:
        gate.worst_conclusion = _conclusion(described["worst_conclusion"])
    for key in LIMITS.keys() & described.keys():
        setattr(gate, key, _number(key, described[key]))
    if "no_worse_than" in described:
        gate.no_worse_than = _text("no_worse_than", described["no_worse_than"], "the id of a campaign")
    if "undecided" in described:
        gate.undecided = _count("undecided", described["undecided"])
    if "concepts" in described:
        gate.concepts.extend(_concepts(described["concepts"]))
    return gate


def _conclusion(value: object) -> Conclusion.ValueType:
    if not isinstance(value, str) or value not in CONCLUSIONS:
        raise GateError("worst_conclusion", f"must be one of {', '.join(CONCLUSIONS)}, not {value!r}")
    return Conclusion.Value(_CONCLUSION + value.upper())


def _number(key: str, value: object) -> float:
    # In YAML as in JSON, true is no number.
    if isinstance(value, bool) or not isinstance(value, int | float) or not LIMITS[key].allows(value):
        raise GateError(key, f"must be a number {LIMITS[key].words}, not {value!r}")
    return float(value)


def _count(key: str, value: object) -> int:
    # To JSON Schema, 3.0 is whole.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_UNDECIDED:
        raise GateError(key, f"must be a whole number from 0 to {MOST_UNDECIDED}, not {value!r}")
    return value


def _text(key: str, value: object, what: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MOST_CHARACTERS:
        raise GateError(key, f"must be {what}, a text of 1 to {MOST_CHARACTERS} characters, not {value!r}")
    return value


def _concepts(value: object) -> list[str]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CONCEPTS:
        raise GateError("concepts", f"must be a list of 1 to {MOST_CONCEPTS} names of concepts")
    names = [_text("concepts", name, "names of concepts") for name in value]
    if len(set(names)) < len(names):
        raise GateError("concepts", "names a concept twice")
    return names


def _lines(path: Path, node: Any) -> Mapping[str, int]:
    """Return the line of each key; YAML itself would let the last of two equal keys stand."""
    lines: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                first, again = lines[key.value], key.start_mark.line + 1
                raise ValueError(f"{path}: line {again}: {key.value}: stands twice, first in line {first}")
            lines[key.value] = key.start_mark.line + 1
    return lines


def gate_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a gate, for a file of its own or as part of another schema."""
    name = {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS}
    return {
        "title": "unerase gate",
        "description": "What every cell of a campaign must show so that a release may go on; docs/comparison.md",
        "type": "object",
        "properties": {
            "worst_conclusion": {
                "description": "The worst conclusion that is allowed.",
                "enum": list(CONCLUSIONS),
            },
            **{key: _schema_of(limit) for key, limit in LIMITS.items()},
            "no_worse_than": {
                "description": "Id of a campaign: no evaluation of a cell may be significantly worse than in it.",
                **name,
            },
            "undecided": {
                "description": "How many cells may be undecided; default 0.",
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_UNDECIDED,
            },
            "concepts": {
                "description": "Only the cells of these concepts; all unless given.",
                "type": "array",
                "items": name,
                "minItems": 1,
                "maxItems": MOST_CONCEPTS,
                "uniqueItems": True,
            },
        },
        "additionalProperties": False,
        "anyOf": [{"required": [key]} for key in CLAUSES],
        "dependentRequired": {"alpha": ["no_worse_than"]},
    }


def _schema_of(limit: Limit) -> dict[str, Any]:
    most = "maximum" if limit.inclusive else "exclusiveMaximum"
    return {
        "description": limit.description,
        "type": "number",
        "exclusiveMinimum": limit.above,
        most: limit.most,
    }
