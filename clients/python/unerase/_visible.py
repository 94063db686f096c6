"""Text from outside, made safe to print: characters that move the cursor, hide or reorder text become visible.

Names, messages and prompts come from authors of models, tenants and files. Unescaped, their control characters, ANSI
escapes and bidirectional overrides could repaint a terminal or make one name look like another.
"""

import unicodedata

# Control, format (bidirectional marks, zero width), surrogate, private use, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
_ISOLATE, _END = "\u2068", "\u2069"


def visible(text: str) -> str:
    r"""Return the text with every invisible character as an escape, as in `\x1b`, `\n` or `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(each) if unicodedata.category(each) in _HIDDEN else each for each in text)


def isolated(text: str) -> str:
    """Return visible text that does not reorder the text beside it if it is written right to left."""
    shown = visible(text)
    if any(unicodedata.bidirectional(each) in _RIGHT_TO_LEFT for each in shown):
        return f"{_ISOLATE}{shown}{_END}"
    return shown


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
