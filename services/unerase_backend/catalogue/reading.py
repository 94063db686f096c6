"""Reads one catalogue file: strict YAML, each violation with its key."""

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from unerase_backend.catalogue.entries import ConceptEntry, Entry, JudgeEntry, ModelEntry, Name, Words
from unerase_backend.catalogue.places import FilePlaces
from unerase_backend.catalogue.spelled import said_of
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

MAX_BYTES = 4 * 1024 * 1024
MAX_NODES = 500_000


class CatalogueFile(Entry):
    """The content of one file."""

    hub_organisations: Words = ()
    models: dict[Name, ModelEntry] = Field(default_factory=dict)
    judges: dict[Name, JudgeEntry] = Field(default_factory=dict)
    concepts: dict[Name, ConceptEntry] = Field(default_factory=dict)


_SECTIONS: dict[int | str, type[Entry]] = {"models": ModelEntry, "judges": JudgeEntry, "concepts": ConceptEntry}


def read_file(path: Path) -> CatalogueFile:
    """Read and check one catalogue file.

    Raises:
        InvalidRequestError: it cannot be read, is not YAML, or holds a bad field; each violation's field is
            "file: path of the key".
    """
    content = _parse(path)
    organisations = content.get("hub_organisations")
    places = FilePlaces(path.parent, organisations if isinstance(organisations, list) else ())
    _fill_tiles(content)
    try:
        return CatalogueFile.model_validate(content, context={"places": places})
    except ValidationError as error:
        violations = [_violation(path, problem) for problem in error.errors(include_url=False, include_input=False)]
        raise InvalidRequestError.of(*violations) from None


def _violation(path: Path, problem: Any) -> FieldViolation:
    keys = [str(key) for key in problem["loc"] if key != "[key]"]
    return FieldViolation(f"{path.name}: {'.'.join(keys)}", said_of(problem, _keys_beside(problem["loc"])))


def _keys_beside(keys: tuple[int | str, ...]) -> Iterable[str]:
    """Return the keys that an entry, or the file, may have where one stands; none further down."""
    if len(keys) == 1:
        return CatalogueFile.model_fields
    section = _SECTIONS.get(keys[0]) if len(keys) == len(("models", "sd/1.4", "pipeline")) else None
    return section.model_fields if section is not None else ()


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRequestError.of(FieldViolation(path.name, f"must be at most {MAX_BYTES} bytes"))
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        description = f"the catalogue file cannot be read: {error.strerror}"
        raise InvalidRequestError.of(FieldViolation(path.name, description)) from None
    except UnicodeDecodeError:
        raise InvalidRequestError.of(FieldViolation(path.name, "is not text in UTF-8")) from None
    except RecursionError:
        raise InvalidRequestError.of(FieldViolation(path.name, "is nested too deeply")) from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place is not None else ""
        problem = getattr(error, "problem", None) or "is not valid YAML"
        raise InvalidRequestError.of(FieldViolation(path.name, f"{problem}{where}")) from None
    # Dates and numbers that do not exist, and values that are not of the type that their tag names.
    except (ValueError, OverflowError, AttributeError, LookupError, TypeError) as error:
        why = f": {error}" if isinstance(error, ValueError) else ""
        raise InvalidRequestError.of(FieldViolation(path.name, f"is not valid YAML{why}")) from None
    if not isinstance(content, dict):
        raise InvalidRequestError.of(FieldViolation(path.name, "must be a mapping of models, judges and concepts"))
    return content


def _fill_tiles(content: dict[str, Any]) -> None:
    models, concepts = content.get("models"), content.get("concepts")
    if not isinstance(models, dict) or not isinstance(concepts, dict):
        return
    resolutions = [
        entry["resolution"] for entry in models.values() if isinstance(entry, dict) and "resolution" in entry
    ]
    for entry in concepts.values():
        if isinstance(entry, dict) and resolutions:
            entry.setdefault("tile", resolutions[0])


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys, and aliases that unfold to far more than the file holds."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _unfolded(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        seen: set[Hashable] = set()
        for index, key in enumerate(keys):
            if not isinstance(key, Hashable):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", node.value[index][0].start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _unfolded(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Return how many nodes a node is, each alias counted as what it stands for; `known` holds those of earlier nodes.

    Raises:
        yaml.YAMLError: there are more than MAX_NODES, or a node holds itself.
    """
    if node in known:
        if not known[node]:
            raise _bad_alias("an alias leads back to itself", node)
        return known[node]
    known[node] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[node] = 1 + sum(_unfolded(each, known) for each in children)
    if known[node] > MAX_NODES:
        raise _bad_alias(f"holds more than {MAX_NODES} values, aliases unfolded", node)
    return known[node]


def _bad_alias(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, node.start_mark)
