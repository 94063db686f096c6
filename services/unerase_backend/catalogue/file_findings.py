"""What a check of catalogue files finds, by file and key: problems, which must be mended, and notes."""

from collections.abc import Iterable
from dataclasses import dataclass

from unerase_backend.runtime.errors import FieldViolation


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    place: str
    """Where: the catalogue's file and the key in it, as in "models.yaml: models.sd/edited.unet"."""
    description: str
    """What is wrong, and what to do."""
    reason: str
    """Machine-readable, as in "WEIGHTS_MISSING"."""
    problem: bool = True
    """Whether it must be mended; otherwise it is a note."""

    def violation(self) -> FieldViolation:
        """Return it as one bad field of a request."""
        return FieldViolation(self.place, self.description)

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.place}: {self.description}"


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that must be mended."""
    return [finding for finding in findings if finding.problem]
