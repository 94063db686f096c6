"""The syntax of filters: the subset of AIP-160 (https://google.aip.dev/160) that the backend reads.

    filter      = expression
    expression  = factor { "AND" factor }
    factor      = term { "OR" term }            OR binds tighter than AND, as AIP-160 says
    term        = [ "NOT" | "-" ] simple
    simple      = restriction | "(" expression ")"
    restriction = name { "." key } operator value
    operator    = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    key         = word | string
    value       = bare | string                 a string is in double or single quotes, with \\ before a quote or a \\

What AIP-160 has beside these (values without a field, functions, lists of values, wildcards within a value) is refused,
with its position.
"""

import re
from dataclasses import dataclass

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

MAX_LENGTH = 4096
MAX_DEPTH = 32
"""The most parentheses within one another."""
MAX_RESTRICTIONS = 64

_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"<=|>=|!=|<|>|=|:")
_BARE = re.compile(r"[^\s()\"'<>=!,]+")
_KEYWORD = re.compile(r"(AND|OR|NOT)(?=[\s(]|$)")
_SHOWN = 30


@dataclass(frozen=True)
class Value:
    """What stands behind an operator."""

    text: str
    quoted: bool
    position: int

    @property
    def anything(self) -> bool:
        """Whether this is a bare `*`, which asks whether something is there."""
        return self.text == "*" and not self.quoted


@dataclass(frozen=True)
class Restriction:
    """One comparison, as it is written; positions count characters from 1."""

    name: str
    keys: tuple[str, ...]
    operator: str
    value: Value
    position: int


@dataclass(frozen=True)
class Not:
    """The opposite of a filter."""

    of: "Syntax"


@dataclass(frozen=True)
class And:
    """All of several filters."""

    all: "tuple[Syntax, ...]"


@dataclass(frozen=True)
class Or:
    """Any of several filters."""

    any: "tuple[Syntax, ...]"


Syntax = Restriction | Not | And | Or


def invalid(field: str, position: int, problem: str) -> InvalidRequestError:
    """Return the error of a filter; `position` counts its characters from 1."""
    description = f"at character {position}: {problem}"
    return InvalidRequestError(
        f"{field}: {description}", reason="FILTER_INVALID", violations=[FieldViolation(field, description)]
    )


def parse(text: str, field: str = "filter") -> Syntax | None:
    """Return what a filter says; None if it is blank.

    Raises:
        InvalidRequestError: it is not a filter, or too long, too deep or of too many comparisons; says where.
    """
    return _Parser(text, field).filter()


class _Parser:
    """One pass over a filter, by recursive descent."""

    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._field = field
        self._at = 0
        self._depth = 0
        self._restrictions = 0

    def filter(self) -> Syntax | None:
        if len(self._text) > MAX_LENGTH:
            raise self._error(f"a filter has at most {MAX_LENGTH} characters, not {len(self._text)}", MAX_LENGTH)
        for position, character in enumerate(self._text):
            if not character.isprintable() and character not in "\t\r\n":
                raise self._error("a filter has no control and no invisible characters", position)
        if not self._text.strip(" \t\r\n"):
            return None
        found = self._expression()
        if self._rest():
            raise self._error("this parenthesis closes nothing" if self._next(")") else self._unexpected())
        return found

    def _expression(self) -> Syntax:
        factors = [self._factor()]
        while self._keyword("AND"):
            factors.append(self._factor())
        return factors[0] if len(factors) == 1 else And(tuple(factors))

    def _factor(self) -> Syntax:
        terms = [self._term()]
        while self._keyword("OR"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _term(self) -> Syntax:
        if self._keyword("NOT") or self._take("-"):
            return Not(self._simple())
        return self._simple()

    def _simple(self) -> Syntax:
        if not self._take("("):
            return self._restriction()
        opened = self._at - 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"parentheses stand at most {MAX_DEPTH} deep", opened)
        inner = self._expression()
        if not self._take(")"):
            if self._rest():
                raise self._error(self._unexpected())
            raise self._error("this parenthesis is not closed", opened)
        self._depth -= 1
        return inner

    def _restriction(self) -> Restriction:
        begin = self._skip()
        self._restrictions += 1
        if self._restrictions > MAX_RESTRICTIONS:
            raise self._error(f"a filter has at most {MAX_RESTRICTIONS} comparisons")
        if self._rest().startswith(('"', "'")):
            raise self._error("a value needs a field before it, as in state = FAILED")
        if _KEYWORD.match(self._text, begin):
            raise self._error("a comparison is missing here, as in state = FAILED")
        matched = _NAME.match(self._text, begin)
        if matched is None:
            raise self._error("a field is missing here, as in state = FAILED")
        self._at = matched.end()
        keys: list[str] = []
        while self._text.startswith(".", self._at):
            self._at += 1
            keys.append(self._key())
        if self._next("("):
            raise self._error("functions are not supported")
        self._skip()
        operator = _OPERATOR.match(self._text, self._at)
        if operator is None:
            raise self._error(f"{matched[0]} needs an operator (= != < <= > >= :) and a value behind it", begin)
        self._at = operator.end()
        return Restriction(matched[0], tuple(keys), operator[0], self._value(operator[0]), begin + 1)

    def _key(self) -> str:
        if self._text.startswith(('"', "'"), self._at):
            return self._string()
        matched = _KEY.match(self._text, self._at)
        if matched is None:
            raise self._error(
                'a key is missing behind the dot; write others than letters, digits, "-" and "_" in quotes'
            )
        self._at = matched.end()
        if self._text.startswith("/", self._at):
            raise self._error('a key with a "/" stands in quotes, as in labels."team/name"')
        return matched[0]

    def _value(self, operator: str) -> Value:
        begin = self._skip()
        if self._text.startswith(('"', "'"), begin):
            return Value(self._string(), True, begin + 1)
        if self._next("("):
            raise self._error("lists of values are not supported; write the comparison once for each, with OR")
        matched = _BARE.match(self._text, begin)
        if matched is None or _KEYWORD.match(self._text, begin):
            twice = operator == "=" and self._text.startswith("=", begin)
            raise self._error("write = once" if twice else f"a value is missing behind {operator}")
        if "*" in matched[0] and matched[0] != "*":
            raise self._error("wildcards are not supported; write a value that holds * in quotes")
        self._at = matched.end()
        return Value(matched[0], False, begin + 1)

    def _string(self) -> str:
        """Return the string in quotes that begins here."""
        begin, quote = self._at, self._text[self._at]
        found: list[str] = []
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == quote:
                self._at += 1
                return "".join(found)
            if character == "\\":
                self._at += 1
                character = self._text[self._at : self._at + 1]
                if character not in ('"', "'", "\\"):
                    raise self._error("within quotes, \\ stands before a quote or another \\ only", self._at - 1)
            found.append(character)
            self._at += 1
        raise self._error("this quote is not closed", begin)

    def _skip(self) -> int:
        """Go past white space, and return where that is."""
        matched = _SPACE.match(self._text, self._at)
        self._at = matched.end() if matched else self._at
        return self._at

    def _rest(self) -> str:
        return self._text[self._skip() :]

    def _next(self, character: str) -> bool:
        return self._text.startswith(character, self._skip())

    def _take(self, character: str) -> bool:
        there = self._next(character)
        self._at += there
        return there

    def _keyword(self, word: str) -> bool:
        matched = _KEYWORD.match(self._text, self._skip())
        if matched is None or matched[1] != word:
            return False
        self._at = matched.end()
        return True

    def _unexpected(self) -> str:
        word = re.split(r"[\s()]", self._rest(), maxsplit=1)[0][:_SHOWN]
        if word.upper() in ("AND", "OR", "NOT") and not _KEYWORD.match(self._rest()):
            return f"write {word.upper()} in capital letters"
        return "AND or OR is missing between two comparisons"

    def _error(self, problem: str, position: int | None = None) -> InvalidRequestError:
        return invalid(self._field, (self._at if position is None else position) + 1, problem)
