"""A user's YAML file, read as data: whatever is wrong with it is one error that names the file and the line."""

from pathlib import Path
from typing import Any

import yaml


def load_yaml(path: Path, text: str) -> tuple[Any, Any]:
    """Return the content of a file's text, and its root node, which knows the lines; the node is None if it is empty.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    # Dates and numbers that do not exist are ValueErrors, deep nesting is a RecursionError, and values that are not of
    # the type that their tag names are any of the others.
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, AttributeError, LookupError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        why = f": {error}" if isinstance(error, ValueError) else ""
        raise ValueError(f"{path}: {where}not valid YAML{why}") from None
