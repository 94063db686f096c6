"""What a check of a model finds without loading it: problems, all at once, notes, and facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import PreconditionError, UneraseError, UnsafeModelError

UNSUPPORTED = "MODEL_UNSUPPORTED"
"""The reason of what is sound, but cannot be sampled here."""
SCHEDULE = "SCHEDULE_UNSUPPORTED"
"""The reason of a schedule that cannot be followed. Every further reason means a broken or unsafe model."""
_TOLD = 5


@dataclass(frozen=True)
class ModelProblem:
    """One reason why a model cannot be loaded. No text in it holds a path of the machine."""

    part: str
    """`unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`, `lora`, `embedding`, `guard`, or empty for the model as
    a whole.
    """
    reason: str
    """Machine-readable, as in `WEIGHTS_MISSING`."""
    what: str
    """What is wrong."""
    remedy: str = ""
    """What to do; empty where nothing but another model helps."""
    looked_for: str = ""
    """The file that was looked for, within the model's folder."""
    found: str = ""
    """The files that are there in its place, or the file at fault."""

    @property
    def text(self) -> str:
        """The whole problem as one line."""
        what = self.what if not self.part or self.part in self.what else f"{self.part}: {self.what}"
        files = []
        if self.looked_for and self.looked_for not in what:
            files.append(f"looked for {self.looked_for}")
        if self.found and self.found not in what:
            files.append(f"found {self.found}")
        return "; ".join(filter(None, (f"{what} ({', '.join(files)})" if files else what, self.remedy)))


@dataclass(frozen=True)
class PartFacts:
    """What the headers of a part's files say."""

    files: tuple[str, ...]
    """The names of the weight files that are loaded, replacing ones included."""
    parameters: int
    bytes: int
    """Bytes of the tensors that are loaded, as they are stored."""
    dtypes: tuple[str, ...]
    """The number types in the files in safetensors' words, as in ("BF16", "F32")."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading it; empty or 0 where a problem hides it."""

    family: str = ""
    """As in "Stable Diffusion 1"."""
    parts: Mapping[str, PartFacts] = field(default_factory=dict)
    """`unet`, `vae` and `text_encoder`, as far as their files can be read."""
    prediction_type: str = ""
    scheduler: str = ""
    """The scheduler's class."""
    prompt_length: int = 0
    """Tokens of an encoded prompt, including start, end and padding."""
    resolution: int = 0


@dataclass(frozen=True)
class ModelCheck:
    """Everything that was found about one model of the catalogue."""

    model: str
    problems: tuple[ModelProblem, ...]
    notes: tuple[str, ...]
    """What is unusual, and changes nothing or is left out knowingly."""
    facts: ModelFacts

    @property
    def reasons(self) -> str:
        """The first problems in one line; empty if nothing is wrong."""
        texts = [problem.text for problem in self.problems]
        more = [f"and {counted(len(texts) - _TOLD, 'more problem')}"] if len(texts) > _TOLD else []
        return "; ".join(texts[:_TOLD] + more)

    @property
    def error(self) -> UneraseError | None:
        """The error with which loading this model fails; None if nothing is wrong."""
        if not self.problems:
            return None
        first = self.problems[0]
        kind = PreconditionError if first.reason in (UNSUPPORTED, SCHEDULE) else UnsafeModelError
        return kind(
            f"the model {self.model!r} cannot be loaded: {self.reasons}",
            reason=first.reason,
            metadata={
                key: value
                for key, value in {
                    "model": self.model,
                    "part": first.part,
                    "file_looked_for": first.looked_for,
                    "file_found": first.found,
                }.items()
                if value
            },
        )

    def raise_any(self) -> None:
        """Raise the error of its problems.

        Raises:
            PreconditionError: the first problem is that the model cannot be sampled here.
            UnsafeModelError: the first problem is another one.
        """
        if (error := self.error) is not None:
            raise error


class Findings:
    """Collects what a check finds."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.problems: list[ModelProblem] = []
        self.notes: list[str] = []

    def problem(
        self, part: str, reason: str, what: str, *, remedy: str = "", looked_for: str = "", found: str = ""
    ) -> None:
        """Add a problem; see `ModelProblem`."""
        self._add(ModelProblem(part, reason, what, remedy, looked_for, found))

    def note(self, text: str) -> None:
        """Add a note."""
        if text not in self.notes:
            self.notes.append(text)

    def add(self, other: "Findings") -> None:
        """Add the problems and notes of `other`."""
        for problem in other.problems:
            self._add(problem)
        for text in other.notes:
            self.note(text)

    def _add(self, problem: ModelProblem) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def conclude(self, facts: ModelFacts | None = None) -> ModelCheck:
        """Return what was found."""
        return ModelCheck(self.model, tuple(self.problems), tuple(self.notes), facts or ModelFacts())
