"""How names are spelled: their words, the forms that a text or a token may have of them, and when two are one word.

In a text a name is a whole word: with no letter and no digit beside it, unless the name ends there in a script without
capitals, many of which have no spaces.

A word is a run of letters and digits, whatever stands between: `hour_glass`, "hour-glass" and "Hour Glass" have the
same two. Case, compatibility forms and accents make no difference, and neither do English plurals, as far as rules go.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_APOSTROPHES = "'\u2019\u02bc"

MOST_JOINED = 6
"""Runs of more words are not joined: nobody writes them as one."""


def words(text: str) -> list[str]:
    """Return the words of a text, case-folded and in compatibility form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(each if _belongs(each) else " " for each in folded).split()


def plain(text: str) -> str:
    """Return a text without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(each for each in decomposed if not unicodedata.combining(each)))


def singular(word: str) -> str:
    """Return the singular of an English plural; any other word as it is."""
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def plural(word: str) -> str:
    """Return the regular English plural of a singular."""
    if len(word) > 2 and word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"


def forms(names: Iterable[str]) -> set[str]:
    """Return every word of the names, and what runs of their words are as one, in singular and plural, with accents and
    without.
    """
    found: set[str] = set()
    for name in names:
        parts = words(name)
        runs = {
            "".join(parts[begin:end])
            for begin in range(len(parts))
            for end in range(begin + 1, min(begin + MOST_JOINED, len(parts)) + 1)
        }
        runs |= {"".join(parts)} - {""}
        found |= {form for run in runs for one in {run, singular(run)} for form in (one, plural(one))}
    return (found | {plain(form) for form in found}) - {""}


def name_pattern(name: str, *, plurals: bool = False) -> str:
    """Return a regular expression of a name as a whole word, with `plurals` of its last word too.

    Any space stands for another, and either apostrophe for the other: "O'Keeffe" and "O’Keeffe" are one name.
    """
    before = "" if _is_uncased(name[:1]) else r"(?<![^\W_])"
    after = "" if _is_uncased(name[-1:]) else r"(?![^\W_])"
    spelled = "".join(_spelled(each) for each in name)
    return f"{before}{spelled}{'(?:e?s)?' if plurals and after else ''}{after}"


def share_a_word(names: Iterable[str], others: Iterable[str]) -> bool:
    """Return whether one of `names` and one of `others` are one word to people."""
    return not {canonical(name) for name in names}.isdisjoint(map(canonical, others))


@lru_cache(maxsize=65536)
def canonical(name: str) -> str:
    """Return what two names that are one word to people have in common; the name itself if it has no letters."""
    return "".join(singular(plain(word)) for word in words(name)) or name.casefold()


def _spelled(character: str) -> str:
    if character in _APOSTROPHES:
        return f"[{_APOSTROPHES}]"
    return r"\s+" if character.isspace() else re.escape(character)


def _is_uncased(character: str) -> bool:
    return character.isalpha() and character.lower() == character.upper()


def _belongs(character: str) -> bool:
    # Some scripts write vowels as marks on a letter.
    return character.isalnum() or unicodedata.category(character).startswith("M")
