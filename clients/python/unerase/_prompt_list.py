"""A list of prompts in a file, as they are published with their seeds: CSV or YAML.

CSV has a line of column names, commas, semicolons or tabs, and is UTF-8. These columns count, whatever their order and
capitals; the others (categories, percentages, artists) do not. Of several for one thing the first of these counts:

prompt                                                         prompt, sensitive prompt, adv_prompt
seed of the initial noise                                      evaluation_seed, sd_seed, latent_seed, seed
guidance scale                                                 evaluation_guidance, sd_guidance_scale, guidance_scale
size in pixels                                                 sd_image_width, image_width, width; so for the height
the list's own name of the prompt, shown in messages           case_number, id, or a first column without a name

YAML is a list of prompts, or of mappings with the same keys, alone or under the key `prompts`.

A prompt stands as it is: brackets and weights in it are plain text. A seed or a guidance scale that is left out is the
audit's own business.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unerase._counting import count_of
from unerase._prompt_pack import MAX_PROMPT_BYTES
from unerase._yaml_file import load_yaml
from unerase.v1.types_pb2 import FixedPrompt, PromptSource

MAX_BYTES = 64 * 1024 * 1024
MOST_PROMPTS = 100_000
MAX_SEED = 2**64 - 1

MOST_LISTED, MOST_LISTED_BYTES = 1024, 256 * 1024
"""What a request can hold of fixed prompts."""

_COLUMNS: Mapping[str, Sequence[str]] = {
    # As in the lists of Ring-A-Bell and MMA-Diffusion, which name theirs so.
    "prompt": ("prompt", "sensitive prompt", "adv_prompt"),
    "latent_seed": ("evaluation_seed", "sd_seed", "latent_seed", "seed"),
    "guidance_scale": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance"),
    "width": ("sd_image_width", "image_width", "width"),
    "height": ("sd_image_height", "image_height", "height"),
    "id": ("case_number", "id", "", "unnamed: 0"),
}
"""For each field of a fixed prompt the columns that hold it, the first of them first."""

_SEPARATORS = ",;\t"
_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".yaml": "yaml", ".yml": "yaml"}
_WHOLE = re.compile(r"[0-9]+(\.0+)?")
_LARGEST_EXACT_FLOAT = 2**53


@dataclass(frozen=True)
class PromptList:
    """The prompts of a file, in its order, and where they come from."""

    prompts: list[FixedPrompt]
    source: PromptSource
    columns: dict[str, str]
    """The file's own name of the column or key that each field of the prompts was read from."""


def read_prompts(path: str | Path) -> PromptList:
    """Read a list of prompts.

    Raises:
        ValueError: the file is not such a list; the message names the file, the line and what is wrong there.
        OSError: the file cannot be read.
    """
    path = Path(path)
    form = _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path}: must be a .csv, .tsv, .yaml or .yml file")
    with path.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    text = _decoded(path, content)
    rows, columns = _table(path, text) if form == "csv" else _mappings(path, text)
    prompts = [_prompt(f"{path}: {place}", fields) for place, fields in rows]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    _refuse_repeated(path, prompts, [place for place, _ in rows])
    source = PromptSource(name=path.name, digest=hashlib.sha256(content).hexdigest())
    return PromptList(prompts, source, columns)


def taken(prompts: Sequence[FixedPrompt], cases: int) -> Sequence[FixedPrompt]:
    """Return the cases' prompts, and of the rest as many as a request can hold; the backend refuses too many cases."""
    size = 0
    for count, fixed in enumerate(prompts):
        size += fixed.ByteSize()
        if count >= cases and (count == MOST_LISTED or size > MOST_LISTED_BYTES):
            return prompts[:count]
    return prompts


def _decoded(path: Path, content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: must be at most {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line}: is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: line {text.count(chr(10), 0, text.index(chr(0))) + 1}: holds a zero byte")
    return text


Row = tuple[str, dict[str, Any]]
"""A place in the file, and the fields of a fixed prompt that stand there."""


def _table(path: Path, text: str) -> tuple[list[Row], dict[str, str]]:
    separator, header = _header(path, text)
    known = [name.strip().casefold() for name in header]
    places = {
        field: next((known.index(name) for name in names if name in known), -1) for field, names in _COLUMNS.items()
    }
    # Only a first column without a name is an index.
    if places["id"] > 0 and not known[places["id"]]:
        places["id"] = -1
    repeated = [field for field, place in places.items() if place >= 0 and known.count(known[place]) > 1]
    if repeated:
        raise ValueError(f"{path}: line 1: the column {header[places[repeated[0]]]!r} occurs twice")
    rows: list[Row] = []
    for line, cells in _lines(path, text, separator):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            problem = f"has {count_of(len(cells), 'cell')} where the first line names {count_of(len(header), 'column')}"
            raise ValueError(f"{path}: line {line}: {problem}; a prompt with a {separator!r} needs quotes")
        fields = {field: cells[place] for field, place in places.items() if place >= 0}
        given = {field: cell for field, cell in fields.items() if field == "prompt" or cell.strip()}
        rows.append((f"line {line}", given))
        if len(rows) > MOST_PROMPTS:
            raise ValueError(f"{path}: line {line}: holds more than {MOST_PROMPTS} prompts")
    columns = {field: header[place].strip() for field, place in places.items() if place >= 0}
    return rows, columns


def _header(path: Path, text: str) -> tuple[str, list[str]]:
    """Return the separator and the names of the columns."""
    for separator in _SEPARATORS:
        _, header = next(_lines(path, text, separator, first=1), (1, []))
        if any(name.strip().casefold() in _COLUMNS["prompt"] for name in header):
            return separator, header
    raise ValueError(f'{path}: line 1: must name the columns, one of them "prompt"')


def _lines(path: Path, text: str, separator: str, first: int = 2) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of the line on which it begins, from row `first` on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    begin, row = 1, 0
    try:
        for cells in reader:
            row += 1
            if row >= first:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}: line {begin}: is not CSV: {error}") from None


def _mappings(path: Path, text: str) -> tuple[list[Row], dict[str, str]]:
    content, root = load_yaml(path, text)
    if isinstance(content, dict):
        if unknown := [key for key in content if key != "prompts"]:
            raise ValueError(f"{path}: there is no key {unknown[0]!r}; the prompts stand under the key 'prompts'")
        if len(root.value) > 1:
            raise ValueError(f"{path}: line {root.value[1][0].start_mark.line + 1}: the key 'prompts' occurs twice")
        if root.value and root.value[0][0].value != "prompts":
            raise ValueError(f"{path}: line 1: the prompts must stand under the key 'prompts' itself")
        content, root = content.get("prompts"), root.value[0][1] if root.value else root
    if not isinstance(content, list):
        raise ValueError(f"{path}: must be a list of prompts")
    if len(content) > MOST_PROMPTS:
        raise ValueError(f"{path}: holds more than {MOST_PROMPTS} prompts")
    rows: list[Row] = []
    columns: dict[str, str] = {}
    for item, node in zip(content, root.value, strict=True):
        place = f"line {node.start_mark.line + 1}"
        if not isinstance(item, dict):
            rows.append((place, {"prompt": item}))
            continue
        keys = {str(key).casefold(): key for key in item}
        found = {field: next((keys[n] for n in names if n in keys), None) for field, names in _COLUMNS.items()}
        columns |= {field: str(key) for field, key in found.items() if key is not None}
        rows.append((place, {field: item[key] for field, key in found.items() if key is not None}))
    return rows, columns


def _prompt(where: str, fields: Mapping[str, Any]) -> FixedPrompt:
    prompt = fields.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: the prompt must be text, not {prompt!r}; put it in quotes")
    if not prompt.strip():
        raise ValueError(f"{where}: the prompt is empty")
    if len(prompt.encode()) > MAX_PROMPT_BYTES:
        raise ValueError(f"{where}: the prompt must be at most {MAX_PROMPT_BYTES} bytes")
    if "{concept}" in prompt:
        raise ValueError(f"{where}: the prompt stands as it is and cannot hold {{concept}}; a concept has templates")
    fixed = FixedPrompt(prompt=prompt, id=str(fields.get("id", ""))[:100])
    if fields.get("latent_seed") is not None:
        fixed.latent_seed = _whole(where, "seed", fields["latent_seed"], MAX_SEED)
    if fields.get("guidance_scale") is not None:
        fixed.guidance_scale = _number(where, fields["guidance_scale"])
    for field in ("width", "height"):
        if fields.get(field) is not None:
            setattr(fixed, field, _whole(where, field, fields[field], 2**32 - 1))
    if bool(fixed.width) != bool(fixed.height):
        raise ValueError(f"{where}: gives one side of a size and not the other")
    return fixed


def _whole(where: str, what: str, value: object, most: int) -> int:
    """Return a whole number; a table that went through floating point has them with ".0"."""
    said = str(value).strip() if not isinstance(value, bool) else ""
    number = int(said.partition(".")[0]) if _WHOLE.fullmatch(said) and len(said) < 40 else -1
    if not 0 <= number <= most:
        raise ValueError(f"{where}: the {what} must be a whole number from 0 to {most}, not {value!r}")
    if "." in said and number > _LARGEST_EXACT_FLOAT:
        raise ValueError(f"{where}: the {what} {value!r} went through floating point, which has lost its last digits")
    return number


def _number(where: str, value: object) -> float:
    try:
        number = float(str(value)) if not isinstance(value, bool) else float("nan")
    except ValueError:
        number = float("nan")
    if not 1 <= number <= 50:
        raise ValueError(f"{where}: the guidance scale must be from 1 to 50, not {value!r}")
    return number


def _refuse_repeated(path: Path, prompts: Sequence[FixedPrompt], places: Sequence[str]) -> None:
    first: dict[tuple[str, int], str] = {}
    for fixed, place in zip(prompts, places, strict=True):
        if fixed.HasField("latent_seed"):
            before = first.setdefault((fixed.prompt, fixed.latent_seed), place)
            if before != place:
                raise ValueError(f"{path}: {place}: is {before} again, with the same seed: the same picture twice")
