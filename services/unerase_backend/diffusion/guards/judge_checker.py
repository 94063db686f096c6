"""Safety checker by a judge of the catalogue: a picture is withheld if the judge's score reaches a threshold.

The judge sees the whole picture. In an audit it must not be a judge that decides: that one would see nothing of what
it would detect.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.diffusion.guarding import Guard, guard

_Labels = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...], Field(strict=False, max_length=1024)
]


class JudgeCheckerParameters(GuardParameters):
    """`judge` with its `labels` and, for CLIP judges, the `alternatives`; `threshold` of its score, up to 1."""

    judge: Annotated[str, Field(min_length=1, max_length=100)]
    labels: Annotated[_Labels, Field(min_length=1)]
    alternatives: _Labels = ()
    # At 0 it would withhold every picture.
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5


@guard("judge-checker")
class JudgeChecker(Guard):
    """Withholds what a judge detects."""

    Parameters = JudgeCheckerParameters

    def __init__(self, parameters: JudgeCheckerParameters, pipeline: Path, device: Any) -> None:
        super().__init__(parameters, pipeline, device)
        self.question = Question(judge=parameters.judge, labels=parameters.labels, alternatives=parameters.alternatives)
        self.threshold = parameters.threshold
