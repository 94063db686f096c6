"""What can be known of models and catalogues without computing: `check`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from unerase._commands.backend import of_the_backend, of_the_operator
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail
from unerase._commands.options import AsJson, checked_address, finite
from unerase._commands.output import plain_table, say, say_json, stdout
from unerase.v1.models_pb2 import ModelCheck, ModelMemory

_GB = 1e9
# Of models that are alike, so many are named.
_TOLD = 3


def _named(models: list[str] | None) -> list[str] | None:
    """Return names of models; one that a script left empty would ask about nothing."""
    if models and not all(map(str.strip, models)):
        raise typer.BadParameter("the name of a model is empty; leave it out to check every model")
    return models


Models = Annotated[
    list[str] | None,
    typer.Argument(
        help="Catalogue names; every model of the given files unless given.", show_default=False, callback=_named
    ),
]
Catalogues = Annotated[
    list[Path] | None,
    typer.Option("--catalogue", exists=True, dir_okay=False, help="Catalogue file; may be repeated."),
]


def _each_finite(values: list[float] | None) -> list[float] | None:
    for value in values or ():
        finite(value)
    return values


DeviceMemory = Annotated[
    list[float] | None,
    typer.Option(
        help="Plan for a GPU with this many GB free, for several if repeated; for this machine unless given.",
        callback=_each_finite,
        min=0,
    ),
]


def _at(address: str | None) -> str | None:
    return address if address is None else checked_address(address)


At = Annotated[
    str | None,
    typer.Option("--address", help="Ask the backend at HOST:PORT about its own models instead.", callback=_at),
]


Weights = Annotated[
    bool, typer.Option("--weights", help="Also read every weight, for NaN and infinity: seconds for each gigabyte.")
]


def check(
    models: Models = None,
    catalogue: Catalogues = None,
    device_memory: DeviceMemory = None,
    weights: Weights = False,
    address: At = None,
    as_json: AsJson = False,
) -> None:
    """Check a catalogue and its models before anything is computed: exit code 0 if nothing is wrong, 2 otherwise.

    Files, layouts, shapes, number types, schedules, judges and their labels, pictures, prompts that a text encoder
    would cut, and the memory that each model needs.

    UNERASE_SERVE_CATALOGUES, UNERASE_SERVE_DEVICE and the other settings of the backend hold as for `unerase serve`.
    """
    if address is not None:
        if catalogue or device_memory or weights:
            fail(
                "--address: the backend has its own catalogue and device, and reads no weights; leave those out",
                2,
            )
        found = _asked(address, models or ())
    else:
        checked = of_the_backend("check")
        with of_the_operator():
            found = checked(catalogue or (), models or (), device_memory or (), weights=weights)
    if as_json:
        say_json(found)
    else:
        _show(found)
    wrong = len(found["problems"]) + sum(len(each.get("problems", ())) for each in found["models"])
    if wrong or found["device_problem"]:
        raise typer.Exit(int(ExitCode.BAD_INPUT))


def _asked(address: str, models: Sequence[str]) -> dict[str, Any]:
    """Return what a backend says of its models."""
    with connected(address) as client:
        names = models or [model.name for model in client.models()]
        found = [client.check_model(name) for name in names]
    form: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    checks = [json_format.MessageToDict(each, **form) for each in found]
    return {
        "problems": [],
        "notes": [],
        "models": checks,
        "device": [],
        "device_problem": "",
        "weights_read": False,
    }


def _show(found: dict[str, Any]) -> None:
    checks = [json_format.ParseDict(each, ModelCheck()) for each in found["models"]]
    if checks:
        _show_table(checks)
    lines = [*_lines("problem", found["problems"]), *_lines("note", found["notes"])]
    for each in checks:
        lines += [f"problem: {each.name}: {problem.description}" for problem in each.problems]
    lines += _notes(checks)
    if found["device_problem"]:
        lines.append(f"problem: {found['device_problem']}")
    for line in (*lines, *found["device"]):
        say(line)
    wrong = sum(line.startswith("problem: ") for line in lines)
    unread = "; weights were not read for NaN and infinity" if checks and not found["weights_read"] else ""
    say(_problems(wrong) or f"nothing is wrong{unread}")


def _notes(checks: Iterable[ModelCheck]) -> list[str]:
    """Return a line for each note, with the models that it is true of: what a base has, all its changes have."""
    alike: dict[str, list[str]] = {}
    for each in checks:
        for note in each.notes:
            alike.setdefault(note, []).append(each.name)
    return [f"note: {_listed(names)}: {note}" for note, names in alike.items()]


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(names[:_TOLD])
    return told if len(names) <= _TOLD else f"{told} and {len(names) - _TOLD} more"


def _show_table(checks: Iterable[ModelCheck]) -> None:
    table = plain_table("model", "family", "parameters", "stored as", "result")
    alike: dict[str, list[str]] = {}
    for each in checks:
        table.add_row(
            each.name,
            each.family,
            _count(sum(part.parameters for part in each.parts)),
            ", ".join(sorted({dtype for part in each.parts for dtype in part.dtypes})),
            _problems(len(each.problems)) or "right",
        )
        if each.memory:
            alike.setdefault(_memory(each), []).append(each.name)
    stdout.print(table)
    for needed, names in alike.items():
        say(f"{_listed(names)}, in float32 / 16 bits: {needed}")


def _memory(check: ModelCheck) -> str:
    """Return the memory that a model needs, estimated, in words."""
    whole = next((memory for memory in check.memory if memory.dtype == "float32"), ModelMemory())
    half = next((memory for memory in check.memory if memory.dtype != "float32"), ModelMemory())
    text = _both(whole.text_encoder_bytes, half.text_encoder_bytes)
    of_text = f", text encoders among them {text}" if text else ""
    return (
        f"weights {_both(whole.weight_bytes, half.weight_bytes)}{of_text}, "
        f"each row {_both(whole.row_bytes, half.row_bytes)}, "
        f"each row with a gradient {_both(whole.gradient_row_bytes, half.gradient_row_bytes)}, "
        f"each decoded picture {_size(whole.decoded_bytes)}"
    )


def _lines(kind: str, findings: Iterable[dict[str, str]]) -> list[str]:
    return [f"{kind}: {each['place']}: {each['description']}" for each in findings]


def _problems(count: int) -> str:
    return f"{count} problem{'s' if count != 1 else ''}" if count else ""


def _both(whole: int, half: int) -> str:
    return f"{_size(whole)} / {_size(half)}" if whole else ""


def _size(size: int) -> str:
    if not size:
        return ""
    return f"{size / _GB:.2f} GB" if size >= 0.1 * _GB else f"{size / 1e6:.1f} MB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters else ""
