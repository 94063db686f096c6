"""The pages of the documentation and their blocks, as Markdown says where they begin and end."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "sh", "yaml", "json", "toml", "text", "{toctree}")
"""Those that a fenced block may be of: what runs, what is loaded, what is neither."""


@dataclass(frozen=True)
class Block:
    """One block of code."""

    page: str
    line: int
    language: str
    """Empty where the block is indented instead of fenced."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def pages() -> tuple[str, ...]:
    """Return every page by its path from the root."""
    top = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    below = [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
    return tuple(str(path.relative_to(ROOT)) for path in [*sorted(top), *below])


def text_of(page: str) -> str:
    """Return a page as it is written."""
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """Return a page's blocks in their order."""
    found = []
    for token in MarkdownIt("commonmark").parse(text_of(page)):
        if token.type in ("fence", "code_block") and token.map is not None:
            info = token.info.strip() if token.type == "fence" else ""
            language = info or ("no language" if token.type == "fence" else "")
            found.append(Block(page, token.map[0] + 1, language, token.content))
    return tuple(found)


@cache
def _prose(page: str) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(text_of(page)))


def inline_code(page: str) -> Iterator[tuple[int, str]]:
    """Yield what stands in backticks within a page's prose and tables, with its line."""
    for token in _prose(page):
        for child in token.children or ():
            if child.type == "code_inline" and token.map is not None:
                yield token.map[0] + 1, child.content


def links(page: str) -> Iterator[tuple[int, str]]:
    """Yield where a page's links and pictures lead, with their line."""
    for token in _prose(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target and token.map is not None:
                yield token.map[0] + 1, str(target)


def commands(script: str) -> list[str]:
    """Return the commands of a shell script: one a line, where no backslash ends it and no quote is open."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        if line.endswith("\\") or not _closed(pending):
            continue
        if shlex.split(pending, comments=True):
            found.append(pending)
        pending = ""
    if pending:
        raise ValueError(f"a command does not end: {pending}")
    return found


def _closed(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def words(command: str) -> str:
    """Return a command on one line, as a rule names it."""
    return re.sub(r"\s*\\\n\s*", " ", command).strip()
