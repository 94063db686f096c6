"""Prompt packs: prompts that ask for a concept in other words, by kind (`unerase._prompt_pack` reads their files)."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from unerase._prompt_pack import MAX_PROMPT_BYTES, PACK_KIND, read_pack
from unerase.v1.types_pb2 import PromptPack
from unerase_backend.runtime.errors import MOST_NAMED, FieldViolation


def checked_pack_file(path: Path) -> Path:
    """Return the path of a file that holds a prompt pack.

    Raises:
        ValueError: it does not; the message says what is wrong in it.
    """
    try:
        read_pack(path)
    except OSError:
        raise ValueError("cannot be read") from None
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None
    return path


@lru_cache(maxsize=1024)
def pack_of(path: Path | None) -> PromptPack | None:
    """Return the pack of a file that was checked; None without a file. Nobody may change it."""
    return read_pack(path) if path is not None else None


def problems_of_pack(pack: PromptPack, field: str) -> Iterator[FieldViolation]:
    """Yield what is wrong with a pack that arrived in a message, in `field`."""
    if pack.HasField("source") and not pack.kinds:
        yield FieldViolation(f"{field}.kinds", "must be given, because a source is")
    names = Counter(kind.name for kind in pack.kinds)
    for index, kind in enumerate(pack.kinds):
        where = f"{field}.kinds[{index}]"
        if not PACK_KIND.fullmatch(kind.name):
            yield FieldViolation(f"{where}.name", 'must be lower-case words and digits, joined by "-"')
        elif names[kind.name] > 1:
            yield FieldViolation(f"{where}.name", f"{kind.name!r} occurs twice")
        if not kind.prompts:
            yield FieldViolation(f"{where}.prompts", "must hold at least one prompt")
        elif len(set(kind.prompts)) < len(kind.prompts):
            yield FieldViolation(f"{where}.prompts", "hold a prompt twice")
        bad = [place for place, prompt in enumerate(kind.prompts) if not _stands_as_it_is(prompt)]
        for place in bad[:MOST_NAMED]:
            description = f"must be a prompt of at most {MAX_PROMPT_BYTES} bytes without {{concept}}"
            yield FieldViolation(f"{where}.prompts[{place}]", description)


def _stands_as_it_is(prompt: str) -> bool:
    return bool(prompt.strip()) and "{concept}" not in prompt and len(prompt.encode()) <= MAX_PROMPT_BYTES
