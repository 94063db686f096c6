"""The options of `unerase serve`: one for each setting in `OPTIONS`, with its field's type, bounds, default and
description.

A setting that is not an option comes only from the environment. The database's URL is one of these, because every user
of the machine can read a command line.
"""

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from unerase._commands.options import data_folder
from unerase_backend.serve_settings import PREFIX, ServeSettings

OPTIONS = (
    *("host", "port", "metrics_port", "rooms_metrics_port", "data_dir", "artifacts", "catalogues"),
    *("model_roots", "model_organisations"),
    *("device", "dtype", "gpu_memory_gb", "batch_rows", "decode_batch", "models_in_memory", "gradient_rows"),
    *("models_kept", "judge_batch", "attack_timeout_seconds", "generation_replicas", "generation_threads"),
    *("torch_threads", "allow_insecure_bind", "tls_certificate", "tls_key", "tls_client_ca", "tokens"),
    *("log_format", "trace_endpoint"),
)
"""The settings that are options, in the order of the help."""

_HELP = f"""Run the backend on this machine until it is told to stop.

Every option can also be an environment variable, such as {PREFIX}PORT. Further settings are variables only.
"""

_EXPLAIN = Annotated[
    bool, typer.Option("--explain", help="Print how the backend would compute and why, and end; nothing is started.")
]
_TYPES = {"integer": int, "number": float, "boolean": bool, "string": str}


def command(run: Callable[..., None]) -> Any:
    """Return the command, which calls `run` with `explain` and the settings; one that was not given is None."""

    def serve(**settings: Any) -> None:
        run(**settings)

    parameters = [*_parameters(), Parameter("explain", Parameter.KEYWORD_ONLY, default=False, annotation=_EXPLAIN)]
    # Typer reads the options from these two.
    serve.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("serve", help=_HELP)(serve)
    return typer.main.get_command(app)


def _parameters() -> Iterator[Parameter]:
    fields = ServeSettings.model_json_schema()["properties"]
    for name in OPTIONS:
        kind, option = _option(name, fields[name])
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _option(name: str, field: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the type of a setting's value, and its option, from the JSON schema of its field."""
    # A field that may be null has two types; this takes the other one.
    value = next((each for each in field.get("anyOf", ()) if each["type"] != "null"), field)
    several = value["type"] == "array"
    one = value["items"] if several else value
    flag = one["type"] == "boolean"
    words = field["description"]
    settings: dict[str, Any] = {
        "help": f"{words[0].upper()}{words[1:]}{'; may be repeated' if several else ''}.",
        "show_default": False if flag else str(field["default"] or "") or False,
        "min": one.get("minimum", one.get("exclusiveMinimum")),
        "max": one.get("maximum"),
    }
    kind: Any = _TYPES[one["type"]]
    match one.get("format"):
        case "file-path":
            kind = Path
            settings |= {"exists": True, "dir_okay": False}
        case "path":
            kind = Path
            settings |= {"file_okay": False, "callback": data_folder}
    if "enum" in one:
        settings["metavar"] = f"[{'|'.join(one['enum'])}]"
    # A repeated option gives one value at a time, so its name is singular.
    option = f"--{name.removesuffix('s') if several else name}".replace("_", "-")
    return (list[kind] if several else kind) | None, typer.Option(option, **settings)
