"""Prompt filter: a list of words, or regular expressions, in the prompt; the prompt is refused or rewritten.

A word matches as a whole word, whatever the case, and so does a word of several words. A word with other letters
beside it, as in "hourglasses", does not match: that is what such filters miss. The expressions are Python's, searched
in the prompt whatever the case. Rewriting puts `replacement` in place of every match.

An expression can take longer than the age of the world, as "(a|aa)+c" of a hundred a. What takes more than a few
seconds of one prompt is an error that names it: the room would answer nobody else meanwhile.

The filter reads what the encoder would read: of token ids the decoded text; of a prompt with a learned word the words
around it. A learned word has no text, and an embedding has none either, so the filter cannot see them.
"""

from pathlib import Path
from typing import Annotated, Any

# Like Python's re, with a limit on time.
import regex as re
from pydantic import AfterValidator, Field, model_validator

from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, WithheldError, guard
from unerase_backend.runtime.errors import PreconditionError

_MOST_SECONDS = 5.0


def _expression(value: str) -> str:
    try:
        nothing = re.compile(value, re.IGNORECASE).fullmatch("", timeout=_MOST_SECONDS)
    except (re.error, RecursionError, OverflowError, TimeoutError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    if nothing:
        raise ValueError("matches the empty text, and so every prompt")
    return value


_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Texts = Annotated[tuple[_Text, ...], Field(strict=False, max_length=10_000)]
_Expressions = Annotated[
    tuple[Annotated[_Text, AfterValidator(_expression)], ...], Field(strict=False, max_length=1000)
]


class PromptFilterParameters(GuardParameters):
    """`words` and `expressions` that may not occur; with `replacement` the prompt is rewritten, not refused."""

    words: _Texts = ()
    expressions: _Expressions = ()
    replacement: Annotated[str, Field(max_length=200)] | None = None

    @model_validator(mode="after")
    def _some(self) -> "PromptFilterParameters":
        if not self.words and not self.expressions:
            raise ValueError("must name words or expressions")
        return self


@guard("prompt-filter")
class PromptFilter(Guard):
    """Refuses or rewrites prompts."""

    Parameters = PromptFilterParameters

    def __init__(self, parameters: PromptFilterParameters, pipeline: Path, device: Any) -> None:
        super().__init__(parameters, pipeline, device)
        words = sorted(parameters.words, key=len, reverse=True)
        patterns = [rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)"] if words else []
        patterns += parameters.expressions
        self._patterns = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

    def read(self, text: str) -> str:
        """Return the prompt without what may not occur, or refuse it.

        Raises:
            PreconditionError: an expression takes too long over it.
        """
        for pattern in self._patterns:
            try:
                text = self._filtered(pattern, text)
            except TimeoutError:
                message = (
                    f"the prompt filter's {pattern.pattern[:100]!r} takes more than {_MOST_SECONDS:g} s of a prompt: "
                    "write it with fewer repetitions"
                )
                raise PreconditionError(message, reason="GUARD_UNFIT") from None
        return text

    def _filtered(self, pattern: Any, text: str) -> str:
        found = pattern.search(text, timeout=_MOST_SECONDS)
        if found is None:
            return text
        replacement = self.parameters.replacement
        if replacement is None:
            raise WithheldError(f"prompt-filter: the prompt holds {found.group()!r}")
        return " ".join(pattern.sub(lambda _: replacement, text, timeout=_MOST_SECONDS).split())
