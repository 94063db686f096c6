"""Options and arguments that several commands share, and their checks before anything is done."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from google.protobuf import json_format

from unerase._commands.failing import ExitCode, fail
from unerase._files import check_writable, resolved
from unerase._settings import MOST_SECONDS
from unerase.v1.audits_pb2 import Battery, Tolerances
from unerase.v1.types_pb2 import EvaluationRequest

UINT32, UINT64 = 2**32 - 1, 2**64 - 1
_DEEPEST = 100


def checked_address(address: str) -> str:
    """Return an address that gRPC accepts: HOST:PORT, or one with a gRPC scheme such as `unix:`."""
    if address.startswith(("unix:", "unix-abstract:")) or "://" in address:
        return address
    host, _, port = address.rpartition(":")
    if not host or (":" in host and not host.startswith("[")):
        raise typer.BadParameter(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051")
    if any(character.isspace() or not character.isprintable() for character in host):
        raise typer.BadParameter(f"{address!r} is not HOST:PORT: {host!r} is not a host name")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise typer.BadParameter(f"{address!r} is not HOST:PORT: the port must be a number from 1 to 65535")
    return address


def finite(value: float | None) -> float | None:
    """Return a finite number; click accepts `inf` and `nan`."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a number, not {value}")
    return value


def seconds(value: float | None) -> float | None:
    """Return a time to wait that is not too long."""
    if value is not None and not 0 < value <= MOST_SECONDS:
        raise typer.BadParameter(f"must be above 0 and at most {MOST_SECONDS:g} seconds, not {value:g}")
    return value


def output_file(path: Path | None) -> Path | None:
    """Return a path that can be written; checked before the work whose result goes there."""
    if path is not None:
        try:
            check_writable(path)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            raise typer.BadParameter(f"{str(path)!r} cannot be written: {problem}") from None
    return path


def data_folder(path: Path | None) -> Path | None:
    """Return a folder that exists or can be created."""
    if path is not None:
        try:
            place = path.expanduser().absolute()
            there = next(each for each in (place, *place.parents) if each.exists())
        except (OSError, ValueError, RuntimeError) as error:
            raise typer.BadParameter(f"{str(path)!r} cannot be a folder: {error}") from None
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise typer.BadParameter(
                f"{str(path)!r} cannot be a folder: {str(there)!r} is not a folder that can be written to"
            )
    return path


Address = Annotated[
    str, typer.Option(help="HOST:PORT of the backend.", envvar="UNERASE_ADDRESS", callback=checked_address)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
AuditId = Annotated[str, typer.Argument(help="The audit's id.")]
ToleranceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE: excess, excess_of_one_draw, destruction, general_damage or interference; may be repeated. "
        "excess holds for one draw a case as well, unless that has its own."
    ),
]
EvaluationOption = Annotated[
    list[str] | None,
    typer.Option(help="Add NAME, or NAME={...} with parameters as JSON; may be repeated."),
]
BatteryPreset = Annotated[
    str, typer.Option(help="Preset: quick, standard, full or paper; empty takes --evaluation alone.")
]
Cases = Annotated[
    int, typer.Option(help="Number of cases; the preset's, or 24 without a preset, unless given.", min=0, max=UINT32)
]
Steps = Annotated[int, typer.Option(help="Denoising steps; the battery's unless given.", min=0, max=UINT32)]
RequestId = Annotated[str | None, typer.Option(help="Makes the call safe to repeat.")]
HtmlFile = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Write the HTML report here.", callback=output_file)
]
JsonFile = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Write the JSON report here.", callback=output_file)
]
ParquetFile = Annotated[
    Path | None,
    typer.Option(dir_okay=False, help="Write the observations here, for `unerase verdict`.", callback=output_file),
]
DataDir = Annotated[
    Path | None, typer.Option(file_okay=False, help="With --local: the backend's folder.", callback=data_folder)
]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds to wait for the end; the audit or campaign goes on.", callback=seconds),
]


FilterOption = Annotated[
    str,
    typer.Option(
        "--filter", help="Only those for which it holds, as in 'state = FAILED AND labels.team = \"safety\"'."
    ),
]
OrderOption = Annotated[str, typer.Option("--order-by", help="A field, or a field and desc, as in 'end_time desc'.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="KEY=VALUE, to find it by later; may be repeated.")
]
WebhookOption = Annotated[
    str,
    typer.Option(help="URL that is told of the end by a signed POST; the backend must allow its host."),
]


def is_group(context: typer.Context) -> bool:
    """Say whether a group that does something itself was called with one of its commands; refuse options before it."""
    if context.invoked_subcommand is None:
        return False
    for option in context.params:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            fail(f"put options after {context.invoked_subcommand}", ExitCode.BAD_INPUT)
    return True


def labels_of(texts: Iterable[str] | None) -> dict[str, str]:
    """Return the labels that `KEY=VALUE` ask for."""
    labels: dict[str, str] = {}
    for text in texts or ():
        key, separator, value = text.partition("=")
        if not separator or not key:
            fail(f"--label {text}: must be KEY=VALUE, such as team=safety", ExitCode.BAD_INPUT)
        if labels.get(key, value) != value:
            fail(f"--label {text}: {key} has another value already", ExitCode.BAD_INPUT)
        labels[key] = value
    return labels


def different(files: Sequence[Path | None]) -> None:
    """Refuse two outputs that are one file."""
    given = [resolved(file) for file in files if file is not None]
    if len(set(given)) < len(given):
        fail("two of the outputs are the same file; give each its own", ExitCode.BAD_INPUT)


def check_data_dir(data_dir: Path | None, local: bool) -> None:
    """Refuse a folder of a backend where none is started."""
    if data_dir is not None and not local:
        fail("--data-dir needs --local: it is the folder of the backend that --local starts", ExitCode.BAD_INPUT)


def battery_of(preset: str, evaluations: Sequence[str] | None, allow_incomplete: bool) -> Battery:
    """Return the evaluations of a preset with those that `NAME` and `NAME={...}` add."""
    asked = [evaluation_request(text) for text in evaluations or ()]
    return Battery(preset=preset, evaluations=asked, allow_incomplete=allow_incomplete)


def evaluation_request(text: str) -> EvaluationRequest:
    """Return the evaluation that `NAME` or `NAME={...}` asks for."""
    name, _, parameters = text.partition("=")
    if not name:
        fail(f"--evaluation {text}: it must begin with the name of an evaluation", ExitCode.BAD_INPUT)
    try:
        given = json.loads(parameters or "{}", parse_constant=_no_number)
        if _depth(given) > _DEEPEST:
            raise ValueError
        return json_format.ParseDict({"name": name, "parameters": given}, EvaluationRequest())
    except (ValueError, RecursionError, OverflowError, json_format.ParseError):
        fail(f"--evaluation {text}: what follows {name}= must be an object in JSON", ExitCode.BAD_INPUT)


def tolerances_of(texts: Iterable[str]) -> Tolerances:
    """Return the tolerances that `NAME=VALUE` ask for."""
    known = [field.name for field in Tolerances.DESCRIPTOR.fields]
    asked = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            fail(f"--tolerance {text}: there is no tolerance {name!r}, but {', '.join(known)}", ExitCode.BAD_INPUT)
        try:
            asked[name] = float(value)
        except ValueError:
            asked[name] = math.nan
        if not math.isfinite(asked[name]):
            fail(f"--tolerance {text}: what follows {name}= must be a number", ExitCode.BAD_INPUT)
    return Tolerances(**asked)


def _no_number(_: str) -> NoReturn:
    raise ValueError


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
