"""Text from outside, made safe to look at: what would move the cursor, hide or reorder becomes visible.

Names, messages and prompts come from models' makers, tenants and files. Raw, their control characters, ANSI escapes and
bidirectional overrides could repaint a terminal or make one name look like another.
"""

import unicodedata

# Control, format (bidirectional marks, zero width), surrogate, private use, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
_ISOLATE, _END = "\u2068", "\u2069"


def visible(text: str) -> str:
    r"""Return the text with every character that is not seen as an escape, as in `\x1b`, `\n` or `\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(each) if unicodedata.category(each) in _HIDDEN else each for each in text)


def isolated(text: str) -> str:
    """Return visible text that leaves the order of what stands beside it alone, where it is written right to left."""
    shown = visible(text)
    if any(unicodedata.bidirectional(each) in _RIGHT_TO_LEFT for each in shown):
        return f"{_ISOLATE}{shown}{_END}"
    return shown


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
