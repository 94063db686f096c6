"""What a YAML file may hold, described once: it is read with precise errors, and a JSON Schema says the same.

Each shape has `read`, which returns a value as it should be, and `schema`, which accepts and refuses the same values.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from unerase._yaml_file import load_yaml

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MOST_SHOWN = 60
_UINT32 = 2**32 - 1


@dataclass(frozen=True)
class Place:
    """Where a value stands: its file, its keys, and its node, which knows the line."""

    file: Path
    keys: str = ""
    node: yaml.Node | None = None

    def at(self, key: str | int) -> "Place":
        """Return the place of a key of this mapping, or of an item of this list."""
        keys = f"{self.keys}[{key}]" if isinstance(key, int) else f"{self.keys}.{key}".lstrip(".")
        return Place(self.file, keys, self._below(key) or self.node)

    def wrong(self, what: str) -> ValueError:
        """Return the error of a value here."""
        line = f"line {self.node.start_mark.line + 1}: " if self.node is not None else ""
        return ValueError(f"{self.file}: {line}{self.keys + ': ' if self.keys else ''}{what}")

    def check_once(self) -> None:
        """Check that no key of this mapping stands there twice, of which YAML takes the last.

        Raises:
            ValueError: one does.
        """
        seen = set()
        for key, _ in self.node.value if isinstance(self.node, yaml.MappingNode) else ():
            if key.value in seen:
                raise Place(self.file, self.keys, key).wrong(f"the key {key.value!r} stands here twice")
            seen.add(key.value)

    def _below(self, key: str | int) -> yaml.Node | None:
        if isinstance(self.node, yaml.SequenceNode) and isinstance(key, int):
            return self.node.value[key] if key < len(self.node.value) else None
        if isinstance(self.node, yaml.MappingNode):
            return next((value for name, value in self.node.value if name.value == key), None)
        return None


class Shape(Protocol):
    """What a value may be."""

    def read(self, value: Any, place: Place) -> Any:
        """Return the value as it should be; ValueError if it is another."""

    def schema(self) -> dict[str, Any]:
        """Return a JSON Schema that accepts the same values."""


@dataclass(frozen=True)
class Text:
    """Text, of a pattern or one of some words if these are given."""

    most: int = 1024
    least: int = 1
    pattern: str = ""
    told: str = ""
    words: tuple[str, ...] = ()

    def read(self, value: Any, place: Place) -> str:
        """Return the text."""
        if self.words:
            if value not in self.words or not isinstance(value, str):
                raise place.wrong(f"must be one of {', '.join(self.words)}, not {shown(value)}")
            return value
        if not isinstance(value, str):
            raise place.wrong(f"must be text, not {shown(value)}; a number, a date, yes and no are text only in quotes")
        if not self.least <= len(value) <= self.most:
            raise place.wrong(f"must have {self.least} to {self.most} characters, not {len(value)}")
        if self.pattern and not re.search(self.pattern, value):
            raise place.wrong(f"must be {self.told}, not {shown(value)}")
        return value

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        if self.words:
            return {"enum": list(self.words)}
        pattern = {"pattern": self.pattern} if self.pattern else {}
        return {"type": "string", "minLength": self.least, "maxLength": self.most, **pattern}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, value: Any, place: Place) -> bool:
        """Return the value."""
        if not isinstance(value, bool):
            raise place.wrong(f"must be true or false, not {shown(value)}")
        return value

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Number:
    """A number from `least` to `most`, whole if `whole`."""

    least: float
    most: float
    whole: bool = False

    def read(self, value: Any, place: Place) -> float:
        """Return the number; a whole one as an int."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = whole or (isinstance(value, float) and math.isfinite(value))
        if not number or (self.whole and value != int(value)) or not self.least <= value <= self.most:
            raise place.wrong(f"must be {self._kind()}, not {shown(value)}")
        return int(value) if self.whole else float(value)

    def _kind(self) -> str:
        least, most = (int(each) if each == int(each) else each for each in (self.least, self.most))
        return f"a {'whole ' if self.whole else ''}number from {least} to {most}"

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        return {"type": "integer" if self.whole else "number", "minimum": self.least, "maximum": self.most}


def count(most: int = _UINT32, *, least: int = 0) -> Number:
    """Return the shape of a whole number from `least`."""
    return Number(least, most, whole=True)


@dataclass(frozen=True)
class ListOf:
    """A list of `least` to `most` items of one shape; none stands there twice if they are `unique`."""

    item: Shape
    most: int
    least: int = 0
    unique: bool = True

    def read(self, value: Any, place: Place) -> list[Any]:
        """Return the items."""
        if not isinstance(value, list):
            raise place.wrong(f"must be a list, not {shown(value)}")
        if not self.least <= len(value) <= self.most:
            raise place.wrong(f"must have {self.least} to {self.most} items, not {len(value)}")
        read = [self.item.read(each, place.at(index)) for index, each in enumerate(value)]
        for index, each in enumerate(value):
            if self.unique and each in value[:index]:
                raise place.at(index).wrong(f"{shown(each)} stands here twice")
        return read

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        sizes = {"minItems": self.least, "maxItems": self.most}
        return {"type": "array", "items": self.item.schema(), **sizes, "uniqueItems": self.unique}


@dataclass(frozen=True)
class MapOf:
    """A mapping of at most `most` names of a shape to values of another."""

    name: Text
    value: Shape
    most: int

    def read(self, value: Any, place: Place) -> dict[str, Any]:
        """Return the mapping."""
        _check_mapping(value, place)
        if len(value) > self.most:
            raise place.wrong(f"must have at most {self.most} keys, not {len(value)}")
        return {self.name.read(name, place): self.value.read(each, place.at(name)) for name, each in value.items()}

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        return {
            "type": "object",
            "propertyNames": self.name.schema(),
            "additionalProperties": self.value.schema(),
            "maxProperties": self.most,
        }


@dataclass(frozen=True)
class Free:
    """A mapping whose content somebody else checks."""

    def read(self, value: Any, place: Place) -> dict[str, Any]:
        """Return the mapping."""
        _check_mapping(value, place)
        read: dict[str, Any] = value
        return read

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        return {"type": "object"}


@dataclass(frozen=True)
class Key:
    """One key of a mapping: its shape, and what it is for."""

    shape: Shape
    says: str
    required: bool = False


@dataclass(frozen=True)
class Keys:
    """A mapping with the keys that are described; one of `any_of` must be there, if these are given."""

    keys: Mapping[str, Key]
    any_of: tuple[str, ...] = ()

    def read(self, value: Any, place: Place) -> dict[str, Any]:
        """Return the values of the keys that are there."""
        _check_mapping(value, place)
        for key in value:
            if key not in self.keys:
                raise place.at(key).wrong(no_such_key(key, self.keys))
        for name, key in self.keys.items():
            if key.required and name not in value:
                raise place.wrong(f"{name} is missing")
        if self.any_of and not any(name in value for name in self.any_of):
            raise place.wrong(f"{' or '.join(self.any_of)} is missing")
        return {name: self.keys[name].shape.read(each, place.at(name)) for name, each in value.items()}

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        required = [name for name, key in self.keys.items() if key.required]
        return {
            "type": "object",
            "properties": {name: {"description": key.says, **key.shape.schema()} for name, key in self.keys.items()},
            "additionalProperties": False,
            **({"required": required} if required else {}),
            **({"anyOf": [{"required": [name]} for name in self.any_of]} if self.any_of else {}),
        }


@dataclass(frozen=True)
class TextOr:
    """Text, or a value of another shape, which is never text."""

    text: Text
    other: Shape
    told: str = field(default="text or a mapping")

    def read(self, value: Any, place: Place) -> Any:
        """Return the value."""
        if not isinstance(value, str | dict | list):
            raise place.wrong(f"must be {self.told}, not {shown(value)}")
        return self.text.read(value, place) if isinstance(value, str) else self.other.read(value, place)

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        return {"anyOf": [self.text.schema(), self.other.schema()]}


@dataclass(frozen=True)
class Foreign:
    """What another module reads and describes."""

    reads: Callable[[Any, Place], Any]
    described: Callable[[], dict[str, Any]]

    def read(self, value: Any, place: Place) -> Any:
        """Return the value."""
        return self.reads(value, place)

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        return self.described()


def read_shaped(path: Path, shape: Shape) -> tuple[Any, Place]:
    """Return what a file holds, read as a shape, and its place.

    Raises:
        ValueError: it is not YAML, or holds something else; the message names file, line, key and reason.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8; save the file as UTF-8") from None
    content, node = load_yaml(path, text)
    place = Place(path, "", node)
    try:
        return shape.read(content, place), place
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None


def document(shape: Shape, title: str, says: str) -> dict[str, Any]:
    """Return the JSON Schema of a whole file."""
    return {"$schema": SCHEMA_DIALECT, "title": title, "description": says, **shape.schema()}


def no_such_key(key: str, keys: Iterable[str]) -> str:
    """Return what is wrong with a key that is none of the keys, with the one that is nearly spelled so."""
    known = list(keys)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"
    return f"there is no such key; {hint}"


def shown(value: Any) -> str:
    """Return a value as an error shows it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _check_mapping(value: Any, place: Place) -> None:
    if not isinstance(value, dict):
        raise place.wrong(f"must be a mapping, not {shown(value)}")
    place.check_once()
    for name in value:
        if not isinstance(name, str):
            raise place.wrong(f"the key {shown(name)} must be text; put it in quotes")
