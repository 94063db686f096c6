"""Text on the page: untrusted text is shown safely, and numbers are not broken across lines.

Names, prompts and words that attacks found are untrusted. Jinja escapes them for HTML. This module makes characters
visible that a reader would not see, or that would reorder the text around them.
"""

import re
import unicodedata

from markupsafe import Markup, escape

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control and format characters (bidi overrides, zero width, tags), surrogates, line and paragraph separators."""

_SUPERSCRIPT = str.maketrans("0123456789-", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b")
_POWER = re.compile(r"(?<![\w.])(\d(?:\.\d+)?)e([+-]\d{2,3})(?!\w|\.\d)")
_DIGITS = r"[-\u2212+]?\d[\d.,\u202f]*(?:\s%)?"
_POWER_SHOWN = r"\s\u00d7\s10[\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
_WHOLE = re.compile(
    rf"""(?<![\w.])(?:
    (?:p\s)?[=<>]\s{_DIGITS}(?:{_POWER_SHOWN})?   # p = 0.012, and with a power of ten
    | {_DIGITS}{_POWER_SHOWN}                     # with a power of ten
    | {_DIGITS}\s(?:of|to)\s{_DIGITS}             # 23 of 24, 0.05 to 0.12
    | [-\u2212+]\d[\d.]* | \d+[.,]\d+ | \d+\s%    # -0.142, 0.142, 95 %
    )(?!\w)""",
    re.VERBOSE,
)


def visible(text: str) -> str:
    """Return the text with each invisible character written as its code point, as in "\u27e8U+202E\u27e9"."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\u27e8U+{ord(letter):04X}\u27e9" if unicodedata.category(letter) in _UNSEEN else letter for letter in text
    )


def outside(text: str) -> Markup:
    """Return untrusted text as an element that isolates its writing direction from the text around it."""
    return Markup("<bdi>{}</bdi>").format(visible(text))


def whole(text: str) -> Markup:
    """Return the text with each number kept on one line, and with powers of ten as superscripts."""
    shown = _powers(visible(text))
    parts, end = [], 0
    for found in _WHOLE.finditer(shown):
        parts += [escape(shown[end : found.start()]), Markup('<span class="whole">{}</span>').format(found[0])]
        end = found.end()
    return Markup("").join([*parts, escape(shown[end:])])


def unbroken(text: str) -> str:
    """Return the text with invisible characters written out, powers as superscripts and no break within a number.

    For text that a script puts on the page, where `whole` cannot mark it.
    """
    return _WHOLE.sub(lambda found: re.sub(r"\s", "\N{NO-BREAK SPACE}", found[0]), _powers(visible(text)))


def _powers(text: str) -> str:
    return _POWER.sub(
        lambda found: f"{found[1]} \N{MULTIPLICATION SIGN} 10{str(int(found[2])).translate(_SUPERSCRIPT)}", text
    )


def prose(text: str) -> Markup:
    """Return a sentence with unbroken numbers, isolated like untrusted text, because it may quote some."""
    return Markup("<bdi>{}</bdi>").format(whole(text))
