"""How the command fails: its messages, and its exit codes (docs/client.md has the table).

The advice for a failed call follows from its gRPC code or, where more can be said, from its reason.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

import grpc
import typer
from rich.text import Text

from unerase._commands.output import stderr
from unerase._errors import UneraseError
from unerase._visible import visible
from unerase._watching import NOT_IN_TIME


class ExitCode(IntEnum):
    """What the command ends with."""

    UNEXPECTED = 1
    BAD_INPUT = 2
    AUDIT_FAILED = 3
    UNREACHABLE = 4
    GATE_FAILED = 5
    GATE_UNDECIDED = 6
    # As timeout(1) has them, and a shell whose command was ended by SIGINT.
    TIMED_OUT = 124
    INTERRUPTED = 130


EXIT_CODES = {
    grpc.StatusCode.CANCELLED: ExitCode.UNREACHABLE,
    grpc.StatusCode.UNKNOWN: ExitCode.UNEXPECTED,
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.BAD_INPUT,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNREACHABLE,
    grpc.StatusCode.NOT_FOUND: ExitCode.BAD_INPUT,
    grpc.StatusCode.ALREADY_EXISTS: ExitCode.BAD_INPUT,
    grpc.StatusCode.PERMISSION_DENIED: ExitCode.BAD_INPUT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.BAD_INPUT,
    grpc.StatusCode.FAILED_PRECONDITION: ExitCode.BAD_INPUT,
    grpc.StatusCode.ABORTED: ExitCode.UNREACHABLE,
    grpc.StatusCode.OUT_OF_RANGE: ExitCode.BAD_INPUT,
    grpc.StatusCode.UNIMPLEMENTED: ExitCode.BAD_INPUT,
    grpc.StatusCode.INTERNAL: ExitCode.UNEXPECTED,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNREACHABLE,
    grpc.StatusCode.DATA_LOSS: ExitCode.UNEXPECTED,
    grpc.StatusCode.UNAUTHENTICATED: ExitCode.BAD_INPUT,
}
"""Every gRPC code except OK."""

_BY_REASON = {
    "QUOTA_AUDITS": "`unerase audits` lists your audits, `unerase cancel ID` ends one.",
    "QUOTA_PICTURES": "`unerase audit ... --dry-run` says how many pictures an audit takes.",
    "QUOTA_BYTES": "`unerase audits` lists your audits, `unerase delete ID` deletes one with its pictures.",
    "STORAGE_FULL": "Nothing was stored. Whoever runs the backend has to make room on its disk; then try again.",
    "CONCEPTS_FULL": "`unerase concepts` lists them, `unerase concepts delete NAME` deletes one.",
    "OUT_OF_MEMORY": "Try again when the backend is less busy, or ask whoever runs it.",
    "REQUEST_ID_REUSED": "Choose another --request-id, or leave it out.",
    "REPORT_NOT_READY": "`unerase watch ID` waits for the audit's end.",
    "AUDIT_NOT_ENDED": "`unerase cancel ID` ends it.",
    "AUDIT_NOT_FOUND": "`unerase audits` lists your audits.",
    "QUOTA_MODELS": "`unerase models delete NAME` deletes one of yours.",
    "CAMPAIGNS_FULL": "`unerase campaign list` lists your campaigns, `unerase campaign cancel ID` ends one.",
    "GATE_MISSING": "Give one: --gate FILE.",
    "CAMPAIGN_NOT_FOUND": "`unerase campaign list` lists your campaigns.",
    "CAMPAIGN_NOT_ENDED": "`unerase campaign watch ID` waits for its end, `unerase campaign cancel ID` ends it.",
    "MODEL_NOT_FOUND": "`unerase models` lists the models.",
    "CONCEPT_NOT_FOUND": "`unerase concepts` lists the concepts.",
    "BACKEND_DID_NOT_START": "The lines above say why.",
    "EVALUATION_NOT_FOUND": "`unerase evaluations` lists the evaluations.",
}

_BY_CODE = {
    grpc.StatusCode.UNAUTHENTICATED: "Give a token: UNERASE_TOKEN, or UNERASE_TOKEN_FILE with the name of its file.",
    grpc.StatusCode.PERMISSION_DENIED: "Ask whoever runs the backend for a token that allows it.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "Try again later.",
    grpc.StatusCode.UNAVAILABLE: "Try again.",
    grpc.StatusCode.CANCELLED: "The backend ended the call; try again.",
    grpc.StatusCode.ABORTED: "Try again.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The backend was too slow to answer; try again.",
    grpc.StatusCode.UNIMPLEMENTED: "The backend is older or newer than this command (`unerase --version`).",
    grpc.StatusCode.DATA_LOSS: "Stored data is damaged or lost. Run the audit again; tell whoever runs the backend.",
    grpc.StatusCode.INTERNAL: "Tell whoever runs the backend; its log has more.",
    grpc.StatusCode.UNKNOWN: "Tell whoever runs the backend; its log has more.",
}


def fail(message: str, code: int) -> NoReturn:
    """Write a message to stderr, line by line, and end with an exit code."""
    for line in message.rstrip("\n").split("\n"):
        stderr.print(Text(visible(line), style="red"), soft_wrap=True)
    raise typer.Exit(int(code))


def exit_code(error: UneraseError) -> ExitCode:
    """Return the command's exit code after a failed call."""
    if error.reason in NOT_IN_TIME:
        return ExitCode.TIMED_OUT
    return EXIT_CODES.get(error.code, ExitCode.UNEXPECTED)


def lines_of(error: UneraseError, advice: str = "") -> list[str]:
    """Return the lines for an error: the bad fields or the message, then what to do about it."""
    lines = [
        visible(f"{violation.field}: {violation.description}" if violation.field else violation.description)
        for violation in error.violations
    ] or [visible(error.message)]
    notes = list(getattr(error, "__notes__", ()))
    if error.reason in NOT_IN_TIME:
        return [*lines, *notes]
    advice = advice or _BY_REASON.get(error.reason) or _BY_CODE.get(error.code, "")
    if error.retry_after is not None and error.retry_after >= 1:
        advice = f"{advice} The backend asks to wait {_duration(error.retry_after)}.".lstrip()
    return [*lines, *([advice] if advice else []), *notes]


@contextmanager
def reported(advise: Callable[[UneraseError], str] = lambda _: "") -> Iterator[None]:
    """Turn an error into lines on stderr and an exit code; `advise` may know better what to do about it."""
    try:
        yield
    except UneraseError as error:
        fail("\n".join(lines_of(error, advise(error))), exit_code(error))
    except BrokenPipeError:
        # The reader of our output has closed it; click ends silently.
        raise
    except UnicodeEncodeError:
        fail("an argument is not text: it holds bytes that are not UTF-8", ExitCode.BAD_INPUT)
    except OSError as error:
        fail("\n".join([os_problem(error), *getattr(error, "__notes__", ())]), ExitCode.BAD_INPUT)
    except KeyboardInterrupt as error:
        fail("\n".join(["interrupted", *getattr(error, "__notes__", ())]), ExitCode.INTERRUPTED)


def os_problem(error: OSError) -> str:
    """Return what is wrong with a file, without the error's number."""
    return f"{visible(str(error.filename))}: {error.strerror}" if error.filename else str(error)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
