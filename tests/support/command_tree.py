"""The command `unerase` with every option of every command, as a tree to walk through."""

from typing import Any

from typer.main import get_command

from unerase._cli import app
from unerase_backend import serve_options


def whole_command() -> Any:
    """Return the command; `serve` has the options that the backend gives it."""
    group = get_command(app)
    group.commands["serve"] = serve_options.command(lambda **_: None)  # type: ignore[attr-defined]
    return group


def below(command: Any) -> dict[str, Any]:
    """Return the commands of a group; typer's groups are not instances of click's class."""
    return getattr(command, "commands", {})
