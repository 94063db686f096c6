"""A concept in a YAML file: a catalogue entry with a name and the paths of its pictures.

name: my-hourglass
kind: object
names: [hourglass, sandglass]
prompts: ["a picture of a {concept}"]
held_out_prompts: ["a photo of a {concept}"]
labels: {testbed/judge: [hourglass], testbed/clip: [a picture of a hourglass]}
pictures: pictures            # files of PNG, JPEG or WebP, folders of them, or a list of both; relative to this file
near_misses: near-misses.png
pack: pack.yaml               # prompts that ask for it in other words (`_prompt_pack.py`)
tile: 32                      # if the files are sheets: the side of their square tiles
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from unerase._prompt_pack import read_pack
from unerase._yaml_file import load_yaml
from unerase.v1.types_pb2 import Concept, ConceptKind

_KIND = "CONCEPT_KIND_"
_KINDS = [name.removeprefix(_KIND).lower() for name, _ in ConceptKind.items() if name != f"{_KIND}UNSPECIFIED"]
_FLAGS = ("placebo", "sensitive")
_LABELS = ("labels", "alternatives")
_TEXTS = ("name", "kind", "names", "prompts", "held_out_prompts", "control", "initial_token")
_DESCRIPTION = (*_TEXTS[:5], *_LABELS, *_TEXTS[5:], *_FLAGS)
# Their pictures are always blurred.
_SENSITIVE = ("nudity",)
_PICTURES = ("pictures", "near_misses", "pack", "tile")
# What is taken of a folder; the backend reads a file as what its content is.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MOST_FILES_NAMED = 20
_LIST = "a list of texts; in YAML a number, a date, yes and no are texts only in quotes"
_NUMBER = re.compile(r"\bpictures\[(\d+)\]")


@dataclass(frozen=True)
class ConceptFile:
    """What one file describes."""

    concept: Concept
    pictures: list[bytes]
    near_misses: list[bytes]
    tile: int
    files: list[Path]
    """The files of the pictures and, after them, of the near misses."""
    not_taken: list[Path]
    """What else is in their folders, without hidden files."""

    def named(self, text: str) -> str:
        """Return what a backend says of pictures with their files in the place of their numbers."""
        return _NUMBER.sub(lambda found: self._file(int(found.group(1))) or found.group(), text)

    def left_out(self) -> list[str]:
        """Return a line for each file that was not taken, or for how many there are beyond the first."""
        said = [f"{file}: not taken: {_why_not(file)}" for file in self.not_taken]
        more = len(said) - _MOST_FILES_NAMED
        return said if more <= 0 else [*said[:_MOST_FILES_NAMED], f"and {more} more were not taken"]

    def _file(self, number: int) -> str:
        return os.path.normpath(self.files[number]) if number < len(self.files) else ""


def read_concept_file(path: Path) -> ConceptFile:
    """Read a concept and its pictures.

    Raises:
        ValueError: the file does not describe a concept; the message names the key.
        OSError: a file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8; save the file as UTF-8") from None
    content, _ = load_yaml(path, text)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a mapping with the keys {', '.join((*_DESCRIPTION, *_PICTURES))}")
    unknown = [key for key in content if key not in (*_DESCRIPTION, *_PICTURES)]
    if unknown:
        raise ValueError(
            f"{path}: there is no key {unknown[0]!r}; the keys are {', '.join((*_DESCRIPTION, *_PICTURES))}"
        )
    tile = content.get("tile", 0)
    if not isinstance(tile, int) or isinstance(tile, bool) or not 0 <= tile < 2**32:
        raise ValueError(f"{path}: tile: must be the side of a tile in pixels, a whole number")
    not_taken: list[Path] = []
    pictures, near_misses = (_files(path, key, content.get(key) or [], not_taken) for key in _PICTURES[:2])
    concept = _concept(path, content)
    pack = content.get("pack")
    if pack is not None:
        if not isinstance(pack, str):
            raise ValueError(f"{path}: pack: must be the path of a YAML file")
        concept.pack.CopyFrom(read_pack(path.parent / pack))
    return ConceptFile(
        concept,
        [file.read_bytes() for file in pictures],
        [file.read_bytes() for file in near_misses],
        tile,
        [*pictures, *near_misses],
        not_taken,
    )


def _why_not(file: Path) -> str:
    if file.is_dir():
        return "it is a folder; name it in the list of pictures to take its files"
    if file.suffix.lower() in _SUFFIXES:
        return "it is a link to nothing" if file.is_symlink() else "it is no plain file"
    return f"only files that end in {', '.join(_SUFFIXES)} are"


def _concept(path: Path, content: dict[str, Any]) -> Concept:
    fields = {key: content[key] for key in _DESCRIPTION if content.get(key) is not None}
    if "kind" in fields:
        if fields["kind"] not in _KINDS:
            raise ValueError(f"{path}: kind: must be one of {', '.join(_KINDS)}")
        if fields["kind"] in _SENSITIVE and fields.get("sensitive") is False:
            raise ValueError(f"{path}: sensitive: cannot be false, since pictures of this kind are always blurred")
        fields["kind"] = _KIND + fields["kind"].upper()
    given = [fields.pop(key, {}) for key in _LABELS]
    for key, mapping in zip(_LABELS, given, strict=True):
        if not isinstance(mapping, dict):
            raise ValueError(f"{path}: {key}: must map each judge to a list of {key}")
    labels, alternatives = given
    fields["labels"] = [
        {"judge": judge, "labels": labels.get(judge, []), "alternatives": alternatives.get(judge, [])}
        for judge in {**labels, **alternatives}
    ]
    concept = Concept()
    for key, value in fields.items():
        try:
            json_format.ParseDict({key: value}, concept)
        except json_format.ParseError:
            kind = "true or false" if key in _FLAGS else "text" if isinstance(getattr(concept, key), str) else _LIST
            raise ValueError(f"{path}: {key}: must be {kind}") from None
    return concept


def _files(path: Path, key: str, named: object, not_taken: list[Path]) -> list[Path]:
    """Return the files that a key names, those of its folders in order of name; `not_taken` gets the others there."""
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {key}: must be a path, or a list of paths")
    files: list[Path] = []
    for name in names:
        place = path.parent / name
        found = [place]
        if place.is_dir():
            visible = sorted(each for each in place.iterdir() if not each.name.startswith("."))
            found = [each for each in visible if each.is_file() and each.suffix.lower() in _SUFFIXES]
            not_taken += [each for each in visible if each not in found]
        elif place.exists() and not place.is_file():
            raise ValueError(f"{path}: {key}: {name} is no file and no folder")
        if not found:
            raise ValueError(f"{path}: {key}: the folder {name} has no file that ends in {', '.join(_SUFFIXES)}")
        files += found
    return files
