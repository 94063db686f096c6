"""How keys of an entry and what is wrong with them are written in messages."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from unerase_backend.runtime.validation import problem_text


def indexed(keys: Iterable[int | str]) -> str:
    """Return keys as part of a field's path, as in ".lora[0].file"."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def said_of(problem: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """Return what is wrong with a field, of a problem as pydantic reports it; `known` are the keys beside it."""
    if problem["type"] == "missing":
        return "must be given"
    if problem["type"] != "extra_forbidden":
        return problem_text(problem)
    keys = list(known)
    near = get_close_matches(str(problem["loc"][-1]), keys, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(keys)}" if keys else ""
    return f"there is no such key{f'; {hint}' if hint else ''}"
