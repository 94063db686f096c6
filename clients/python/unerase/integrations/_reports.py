"""Reports read from the JSON files that `unerase report` and `unerase campaign report` write."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf import json_format

from unerase.v1.audits_pb2 import Report
from unerase.v1.campaigns_pb2 import CampaignReport
from unerase.v1.models_pb2 import Model
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Outcome, Verdict

LEVELS = (Conclusion.CONCLUSION_NOT_ERASED, Conclusion.CONCLUSION_AVOIDED, Conclusion.CONCLUSION_REMOVED)
"""The conclusions that say something of the model, the worst first; the others say that the audit could not."""


@dataclass(frozen=True)
class ReportFile:
    """The bytes of a report's JSON, and what they say."""

    name: str
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "ReportFile":
        """Read a file.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds no report.
        """
        file = cls(path.name, path.read_bytes())
        try:
            file.message  # noqa: B018 - read once, so that what is wrong is said here
        except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not the JSON of a report: {error}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        return file

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def message(self) -> Report | CampaignReport:
        """What the bytes say: the report of an audit, or of a campaign."""
        values = json.loads(self.content)
        if not isinstance(values, dict) or "content" not in values:
            raise json_format.ParseError("it has no content")
        kind = CampaignReport if {"campaign_id", "campaignId"} & values.keys() else Report
        # A newer backend may say more.
        return json_format.ParseDict(values, kind(), ignore_unknown_fields=True)


def subject_of(report: Report) -> Model:
    """Return the erased model, as the manifest has it; only its name if the manifest lacks it."""
    name = report.content.spec.subject
    return next((model for model in report.content.manifest.models if model.name == name), Model(name=name))


def own_files(report: Report) -> dict[str, str]:
    """Return the SHA-256 of each file of weights that the subject does not share with another model of the audit.

    By component; a file that the base has as well says nothing of the subject.
    """
    subject = subject_of(report)
    shared = {
        file.digest for model in report.content.manifest.models if model.name != subject.name for file in model.files
    }
    own = [file for file in subject.files if file.digest not in shared]
    alone = [file.component for file in own]
    return {
        file.component if alone.count(file.component) == 1 else f"{file.component}/{at}": file.digest
        for at, file in enumerate(own)
    }


def verdicts_of(report: Report) -> Iterator[tuple[str, Verdict]]:
    """Yield the verdict, and that on the deployed model if there is one, each with the word for what it is about."""
    verdict = report.content.verdict
    yield ("weights" if verdict.HasField("deployed") else ""), verdict
    if verdict.HasField("deployed"):
        yield "deployed", verdict.deployed


def conclusion_word(verdict: Verdict) -> str:
    """Return a conclusion as it is written in files, as in "not_erased"."""
    return Conclusion.Name(verdict.conclusion).removeprefix("CONCLUSION_").lower()


def outcome_word(result: EvaluationResult) -> str:
    """Return an outcome as it is written in files, as in "does_not_recover"."""
    return Outcome.Name(result.outcome).removeprefix("OUTCOME_").lower()
