"""Prompt filter: a list of words, or regular expressions, in the prompt; the prompt is refused or rewritten.

A word matches as a whole word, whatever the case, and so does a word of several words. A word with other letters
beside it, as in "hourglasses", does not match: that is what such filters miss. The expressions are Python's, searched
in the prompt whatever the case. Rewriting puts `replacement` in place of every match.

The filter reads what the encoder would read: of token ids the decoded text; of a prompt with a learned word the words
around it. A learned word has no text, and an embedding has none either, so the filter cannot see them.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, WithheldError, guard


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
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
        patterns += [f"(?:{expression})" for expression in parameters.expressions]
        self._patterns = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

    def read(self, text: str) -> str:
        """Return the prompt without what may not occur, or refuse it."""
        replacement = self.parameters.replacement
        for pattern in self._patterns:
            if replacement is not None:
                text = " ".join(pattern.sub(lambda _: replacement, text).split()) if pattern.search(text) else text
            elif (found := pattern.search(text)) is not None:
                raise WithheldError(f"prompt-filter: the prompt holds {found.group()!r}")
        return text
